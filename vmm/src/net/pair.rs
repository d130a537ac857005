//! A receive and a transmit queue with their queue of the tap, served by one thread.

use std::{os::fd::AsRawFd, sync::Arc, time::Duration};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use super::{link::Link, receive::Receiver, tap::Tap, transmit::Sender};
use crate::virtio::device::{ActiveQueue, DriverInterrupt};

/// Event data.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const TAP: u32 = 2;
const TIMER: u32 = 3;

/// How a turn of one direction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// An event will say when there is more.
    Done,
    /// There may be more now.
    Again,
    /// There may be more, but not before that time is over.
    After(Duration),
    /// The tap interface is gone.
    Gone,
}

/// The pair.
pub struct Pair {
    pub tap: Arc<Tap>,
    pub receive: Receiver,
    pub transmit: Sender,
    pub link: Arc<Link>,
    /// Tells the driver of the link.
    pub config_interrupt: Arc<dyn DriverInterrupt>,
    /// Where a rate is limited.
    pub timer: Option<TimerFd>,
}

impl Pair {
    fn serve(&mut self, ops: &mut EventOps<'_>) {
        let turns = [
            (self.transmit.serve(&self.tap), self.transmit.queue()),
            (self.receive.serve(&self.tap), self.receive.queue()),
        ];
        let mut wait: Option<Duration> = None;
        let mut gone = false;
        for (turn, queue) in turns {
            match turn {
                Turn::Done => {}
                Turn::Again => queue.come_back(),
                Turn::After(time) => wait = Some(wait.map_or(time, |wait| wait.min(time))),
                Turn::Gone => {
                    gone = true;
                    queue.come_back();
                }
            }
        }
        if let (Some(wait), Some(timer)) = (wait, &mut self.timer) {
            // Fails only for a time that is no time.
            let _ = timer.reset(wait, None);
        }
        if gone {
            self.transmit.cut = true;
            self.transmit.stuck = false;
            // It would be reported for ever.
            let _ = ops.remove(Events::new_raw(self.tap.as_raw_fd(), EventSet::empty()));
            self.link.lost(&*self.config_interrupt);
        }
    }
}

impl MutEventSubscriber for Pair {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let edge = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let mut events = vec![
            Events::with_data(&self.receive.queue().kick, RECEIVE, EventSet::IN),
            Events::with_data(&self.transmit.queue().kick, TRANSMIT, EventSet::IN),
            // By edge, so that what the guest has no buffers for, or the tap no room, isn't reported all the time.
            Events::with_data_raw(self.tap.as_raw_fd(), TAP, edge),
        ];
        if let Some(timer) = &self.timer {
            events.push(Events::with_data_raw(timer.as_raw_fd(), TIMER, EventSet::IN));
        }
        for event in events {
            // Descriptors of ours that epoll knows how to poll: only memory can be lacking.
            if let Err(error) = ops.add(event) {
                eprintln!("sealock-vmm: cannot watch a network device's descriptor: {error}");
            }
        }
        // Whatever became available before.
        self.transmit.queue().come_back();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        // Reading an eventfd fails only if there is nothing to be read.
        let acknowledge = |queue: &ActiveQueue| drop(queue.kick.read());
        match events.data() {
            RECEIVE => acknowledge(self.receive.queue()),
            TRANSMIT => acknowledge(self.transmit.queue()),
            TAP => {
                self.receive.readable = true;
                self.transmit.stuck = false;
            }
            _ => {
                if let Some(timer) = &mut self.timer {
                    // Fails only for a descriptor that is no timer. Disarmed it is not readable.
                    let _ = timer.clear();
                }
            }
        }
        self.serve(ops);
    }
}
