//! Output that is on its way to whoever reads it on the host.
//!
//! The kernel takes a program's output before it has reached the host, and the host before it has reached its reader. The
//! host says by the end of its stream that all has; until then the guest is better not powered off.

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
};

/// How many streams there are whose output has not reached its reader.
#[derive(Clone, Debug)]
pub struct Undelivered(Arc<watch::Sender<usize>>);

impl Default for Undelivered {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

/// One such stream, for as long as it is kept.
#[derive(Debug)]
pub struct Stream(Undelivered);

impl Undelivered {
    /// One more.
    pub fn begin(&self) -> Stream {
        self.0.send_modify(|streams| *streams += 1);
        Stream(self.clone())
    }

    /// Waits until there is none.
    pub async fn none(&self) {
        // Never fails: the sender is here.
        let _ = self.0.subscribe().wait_for(|streams| *streams == 0).await;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.0.send_modify(|streams| *streams -= 1);
    }
}

impl Stream {
    /// Waits until the host says, by the end of what it sends, that all it was sent is delivered.
    pub async fn delivered(self, mut from_host: impl AsyncRead + Unpin) {
        // It sends nothing else; an error is an end.
        let mut nothing = [0; 64];
        while let Ok(1..) = from_host.read(&mut nothing).await {}
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn the_end_of_the_hosts_streams_is_waited_for() {
        let undelivered = Undelivered::default();
        undelivered.none().await;
        let (host, guest) = duplex(100);
        let (one, other) = (undelivered.begin(), undelivered.begin());
        let none = undelivered.none();
        tokio::pin!(none);
        drop(other);
        let delivered = one.delivered(guest);
        tokio::pin!(delivered);
        assert!(poll!(&mut delivered).is_pending());
        assert!(poll!(&mut none).is_pending());
        drop(host);
        delivered.await;
        none.await;
    }
}
