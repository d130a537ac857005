//! The device before its driver is ready.

use std::{io, os::fd::OwnedFd, sync::Arc};

use sealock_protocol::control::{MAX_NET_QUEUE_PAIRS, NetConfig};
use virtio_bindings::{
    virtio_ids::VIRTIO_ID_NET,
    virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ},
};
use virtio_queue::QueueT;
use vmm_sys_util::timerfd::TimerFd;

use super::{
    bucket::Limit,
    command::{Commands, use_pairs},
    features::{has, offered, offloads, usable_pairs},
    link::Link,
    pair::Pair,
    receive::Receiver,
    tap::{self, Tap},
    transmit::Sender,
    vhost::{self, Vhost},
};
use crate::{
    thread::Thread,
    virtio::device::{ActivateError, Activation, Part, VirtioDevice},
};

/// Descriptors of a queue for packets: with pages for buffers more than fit the pipe of a fast connection.
const QUEUE_SIZE: u16 = 256;
/// Descriptors of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The smallest and the largest packet size there is: IPv4's least (RFC 791), and what the field holds.
const LEAST_MTU: u16 = 68;

/// Why a device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of queues.
    #[error("queue_pairs = {0} is not possible: 1 to {MAX_NET_QUEUE_PAIRS} are")]
    QueuePairs(u8),
    /// The number of descriptors.
    #[error("a network device needs {needed} descriptors, not {given}")]
    Descriptors {
        /// By its configuration.
        needed: usize,
        /// That came.
        given: usize,
    },
    /// The packet size.
    #[error("mtu = {0} is not possible: {LEAST_MTU} to 65535 bytes are")]
    Mtu(u16),
    /// The hardware address.
    #[error("mac = {0:02x?} is no address of a single interface")]
    Mac([u8; 6]),
    /// The tap.
    #[error("cannot use the tap interface")]
    Tap(#[from] tap::Error),
    /// vhost-net.
    #[error("cannot have the host's kernel serve it")]
    Vhost(#[from] vhost::Error),
}

/// virtio-net.
pub struct Net {
    taps: Vec<Arc<Tap>>,
    /// One for each tap, or none at all.
    vhosts: Vec<Vhost>,
    link: Arc<Link>,
    mtu: u16,
    features: u64,
    queue_sizes: Vec<u16>,
    receive_limit: Option<Arc<Limit>>,
    send_limit: Option<Arc<Limit>>,
}

impl Net {
    /// The device that `config` describes, with its descriptors: those of the tap, then those of vhost-net, which isn't used where a
    /// rate is limited.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(config: &NetConfig, descriptors: Vec<OwnedFd>) -> Result<Self, Error> {
        let pairs = usize::from(config.queue_pairs);
        if pairs == 0 || config.queue_pairs > MAX_NET_QUEUE_PAIRS {
            return Err(Error::QueuePairs(config.queue_pairs));
        }
        if descriptors.len() != config.descriptors() {
            return Err(Error::Descriptors {
                needed: config.descriptors(),
                given: descriptors.len(),
            });
        }
        if config.mtu < LEAST_MTU {
            return Err(Error::Mtu(config.mtu));
        }
        if config.mac[0] & 1 != 0 || config.mac == [0; 6] {
            return Err(Error::Mac(config.mac));
        }
        let mut descriptors = descriptors.into_iter();
        let taps = descriptors
            .by_ref()
            .take(pairs)
            .map(|fd| Tap::new(fd, pairs > 1).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let uso = taps.first().map_or(Ok(false), |tap| tap.knows_uso())?;
        let mut device = Self::with_taps(config, taps, uso);
        if device.receive_limit.is_none() && device.send_limit.is_none() {
            device.vhosts = descriptors.map(Vhost::new).collect::<Result<_, _>>()?;
        }
        for vhost in &device.vhosts {
            device.features = vhost.offered(device.features);
        }
        Ok(device)
    }

    /// The device on `taps`, which know segmentation of UDP if `uso` says so.
    pub(super) fn with_taps(config: &NetConfig, taps: Vec<Arc<Tap>>, uso: bool) -> Self {
        let pairs = taps.len();
        let limit = |limit: Option<_>| limit.and_then(Limit::new).map(Arc::new);
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Self {
            // At most MAX_NET_QUEUE_PAIRS.
            link: Arc::new(Link::new(config.mac, config.mtu, pairs as u16)),
            mtu: config.mtu,
            features: offered(pairs, uso),
            queue_sizes,
            receive_limit: limit(config.receive_limit),
            send_limit: limit(config.send_limit),
            vhosts: Vec::new(),
            taps,
        }
    }

    #[cfg(test)]
    pub(super) fn link(&self) -> Arc<Link> {
        self.link.clone()
    }

    fn timer(&self) -> Result<Option<TimerFd>, ActivateError> {
        if self.receive_limit.is_none() && self.send_limit.is_none() {
            return Ok(None);
        }
        TimerFd::new().map(Some).map_err(|error| ActivateError::Host {
            what: "make a timer",
            source: error.into(),
        })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.link.read_config(offset, data);
    }

    fn config_generation(&self) -> u8 {
        self.link.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            config_interrupt,
        } = activation;
        let usable = usable_pairs(features, self.taps.len());
        let taps = &self.taps[..usable];
        self.taps[0]
            .set_offloads(offloads(features))
            .or_else(ignore_loss)
            .map_err(|source| ActivateError::Host {
                what: "set the tap's offloads",
                source,
            })?;
        // Until the driver asks for more (5.1.6.5.6).
        use_pairs(&self.taps, 1);
        self.link.reset();

        let mut parts = Vec::new();
        let mut queues = queues.into_iter();
        for (number, tap) in taps.iter().enumerate() {
            let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
                return Err(ActivateError::QueueNotEnabled(2 * number));
            };
            if !receive.queue.ready() || !transmit.queue.ready() {
                if number == 0 {
                    let missing = usize::from(receive.queue.ready());
                    return Err(ActivateError::QueueNotEnabled(missing));
                }
                // A driver need not set up what it doesn't use.
                continue;
            }
            if let Some(vhost) = self.vhosts.get(number) {
                let served = vhost
                    .start(&memory, features, tap.clone(), [receive, transmit])
                    .map_err(|error| ActivateError::Host {
                        what: "have vhost-net serve a pair of queues",
                        source: io::Error::other(error),
                    })?;
                parts.push(Part::shared(served));
                continue;
            }
            let receive_limit = self.receive_limit.clone();
            let pair = Pair {
                tap: tap.clone(),
                receive: Receiver::new(&memory, receive, features, self.mtu, receive_limit),
                transmit: Sender::new(&memory, transmit, features, self.send_limit.clone()),
                link: self.link.clone(),
                config_interrupt: config_interrupt.clone(),
                timer: self.timer()?,
            };
            parts.push(Part::own(Thread::Net, pair));
        }
        if has(features, VIRTIO_NET_F_CTRL_VQ)
            && let Some(control) = queues.next()
            && control.queue.ready()
        {
            let taps = if has(features, VIRTIO_NET_F_MQ) {
                taps.to_vec()
            } else {
                Vec::new()
            };
            let commands = Commands::new(memory, control, taps, self.link.clone());
            parts.push(Part::shared(commands));
        }
        Ok(parts)
    }
}

/// An interface that is gone is no reason not to work with its driver: the link is down.
fn ignore_loss(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EBADFD | libc::ENODEV) => Ok(()),
        _ => Err(error),
    }
}
