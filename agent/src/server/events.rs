//! What happens by itself in the pod, until the host asks for it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sealock_protocol::agent::{NextEventResponse, OutOfMemory};
use tokio::sync::Notify;

use crate::cgroup::{Cgroup, Watched};

/// What the host has not been told yet: at most one event for each container, which tells the newest.
#[derive(Debug, Default)]
pub struct Events {
    kills: Mutex<BTreeMap<String, u64>>,
    news: Notify,
}

impl Events {
    fn kills(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        // Nothing panics while it is held, and a panic ends the program.
        self.kills.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many processes of a container have been killed for want of memory, in its life.
    fn out_of_memory(&self, id: &str, kills: u64) {
        self.kills().insert(id.to_owned(), kills);
        self.news.notify_one();
    }

    /// The next event, when it is there.
    pub async fn next(&self) -> NextEventResponse {
        loop {
            // Asked for first: what happens in between is noticed.
            let news = self.news.notified();
            if let Some((id, kills)) = self.kills().pop_first() {
                let mut event = OutOfMemory::new();
                event.id = id;
                event.kills = kills;
                let mut response = NextEventResponse::new();
                response.set_out_of_memory(event);
                return response;
            }
            news.await;
        }
    }
}

/// The count of a container's processes that were killed for want of memory, and who is told when it grows.
#[derive(Debug)]
pub struct OomKills {
    id: String,
    seen: AtomicU64,
    events: Arc<Events>,
}

impl OomKills {
    /// None yet, of the container `id`.
    pub fn new(id: &str, events: Arc<Events>) -> Self {
        Self {
            id: id.to_owned(),
            seen: AtomicU64::new(0),
            events,
        }
    }

    /// The count now. Whoever is to be told is told before this returns.
    pub fn count(&self, cgroup: &Cgroup) -> u64 {
        // Once the cgroup is gone the count grows no more.
        let events = cgroup.read("memory.events").unwrap_or_default();
        self.note(&events)
    }

    /// Tells of each growth, for ever, or until the cgroup is gone.
    pub async fn watch(&self, mut events: Watched) {
        while let Ok(text) = events.read() {
            self.note(&text);
            if events.changed().await.is_err() {
                return;
            }
        }
    }

    fn note(&self, events: &str) -> u64 {
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            .unwrap_or(0);
        // One thread: nothing is ordered by it.
        let seen = self.seen.fetch_max(kills, Ordering::Relaxed);
        if kills > seen {
            self.events.out_of_memory(&self.id, kills);
        }
        kills.max(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(response: &NextEventResponse) -> (String, u64) {
        let event = response.out_of_memory();
        (event.id.clone(), event.kills)
    }

    #[tokio::test]
    async fn each_growth_is_told_once_and_the_newest_of_it() {
        let events = Arc::new(Events::default());
        let kills = OomKills::new("c1", Arc::clone(&events));
        assert_eq!(kills.note("low 0\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills.note("oom_kill 1\n"), 1);
        assert_eq!(told(&events.next().await), ("c1".to_owned(), 1));
        kills.note("oom_kill 2\n");
        kills.note("oom_kill 4\n");
        assert_eq!(told(&events.next().await), ("c1".to_owned(), 4));
        // A cgroup that is gone says nothing, and what was counted stays.
        assert_eq!(kills.note(""), 4);
        let asking = events.next();
        tokio::pin!(asking);
        assert!(futures::poll!(&mut asking).is_pending());
        OomKills::new("c2", Arc::clone(&events)).note("oom_kill 1\n");
        assert_eq!(told(&asking.await), ("c2".to_owned(), 1));
    }
}
