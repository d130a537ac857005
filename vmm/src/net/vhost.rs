//! vhost-net: the host's kernel serves a pair of queues by itself (Linux: `include/uapi/linux/vhost.h`).
//!
//! It sees the guest's notifications as the VMM would, by the queue's eventfd. Its interrupts go by an eventfd too: straight to KVM
//! while the driver has their vector unmasked, and otherwise to here, to be pending.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_kern::{
        VhostKernBackend,
        vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file},
    },
};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::VIRTIO_NET_F_MRG_RXBUF,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::QueueT;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::{
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
    ioctl::ioctl_with_ref,
};

use super::tap::Tap;
use crate::virtio::device::{ActiveQueue, Memory};

/// What the transport offers to every driver.
const NEEDED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// What vhost must be told of the features that were negotiated; the others are the tap's and the control queue's.
const KNOWN: u64 = NEEDED | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Why vhost-net can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It refuses something.
    #[error("vhost-net cannot {what}")]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// Why not.
        #[source]
        source: vhost::Error,
    },
    /// It is too old.
    #[error("the host's vhost-net lacks features of {needed:#x}: set vhost_net = \"off\", or use Linux 5.10 or later", needed = NEEDED)]
    Features,
    /// There is no descriptor left.
    #[error("cannot make an eventfd")]
    Eventfd(#[source] io::Error),
}

fn refused(what: &'static str) -> impl FnOnce(vhost::Error) -> Error {
    move |source| Error::Refused { what, source }
}

/// A descriptor of `/dev/vhost-net`, which serves one pair of queues at a time.
pub struct Vhost {
    fd: Arc<OwnedFd>,
    features: u64,
}

impl Vhost {
    /// Makes this process the owner of `fd`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(fd: OwnedFd) -> Result<Self, Error> {
        let fd = Arc::new(fd);
        let kernel = Kernel {
            fd: fd.clone(),
            memory: Arc::new(GuestMemoryMmap::new()),
        };
        let features = kernel.get_features().map_err(refused("say what it offers"))?;
        if features & NEEDED != NEEDED {
            return Err(Error::Features);
        }
        kernel
            .set_owner()
            .map_err(refused("make this process its owner"))?;
        Ok(Self { fd, features })
    }

    /// What of `offered` can be offered with it.
    #[must_use]
    pub fn offered(&self, offered: u64) -> u64 {
        offered & (self.features | !KNOWN)
    }

    /// Begins to serve `queues`, the receive and the transmit queue, by `tap`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(
        &self,
        memory: &Memory,
        features: u64,
        tap: Arc<Tap>,
        queues: [ActiveQueue; 2],
    ) -> Result<Served, Error> {
        let kernel = Kernel {
            fd: self.fd.clone(),
            memory: memory.clone(),
        };
        kernel
            .set_features(features & KNOWN)
            .map_err(refused("take the features"))?;
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                ..VhostUserMemoryRegionInfo::default()
            })
            .collect();
        kernel
            .set_mem_table(&regions)
            .map_err(refused("take the guest's memory"))?;
        let call = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Eventfd);
        let served = Served {
            calls: [call()?, call()?],
            kernel,
            queues,
            tap,
        };
        for (index, (queue, call)) in served.queues.iter().zip(&served.calls).enumerate() {
            served.set_up(index, queue, call)?;
        }
        for index in 0..served.queues.len() {
            served.set_backend(index, served.tap.as_raw_fd())?;
        }
        for queue in &served.queues {
            // Whatever became available before.
            queue.come_back();
        }
        Ok(served)
    }
}

/// What the calls of vhost need.
struct Kernel {
    fd: Arc<OwnedFd>,
    memory: Memory,
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VhostKernBackend for Kernel {
    type AS = Memory;

    fn mem(&self) -> &Memory {
        &self.memory
    }

    /// The transport has checked the rings; the library refuses one that ends where memory does.
    fn is_valid(&self, _config: &VringConfigData) -> bool {
        true
    }
}

/// A pair of queues that vhost serves, until this is dropped.
pub struct Served {
    kernel: Kernel,
    queues: [ActiveQueue; 2],
    /// Readable when vhost interrupts the driver and KVM has not done so by itself.
    calls: [EventFd; 2],
    tap: Arc<Tap>,
}

impl Served {
    fn set_up(&self, index: usize, active: &ActiveQueue, call: &EventFd) -> Result<(), Error> {
        let (kernel, queue) = (&self.kernel, &active.queue);
        kernel
            .set_vring_num(index, queue.size())
            .map_err(refused("take a queue's size"))?;
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: queue.desc_table(),
            used_ring_addr: queue.used_ring(),
            avail_ring_addr: queue.avail_ring(),
            log_addr: None,
        };
        kernel
            .set_vring_addr(index, &config)
            .map_err(refused("take a queue's addresses"))?;
        kernel
            .set_vring_base(index, queue.next_avail())
            .map_err(refused("take a queue's index"))?;
        kernel
            .set_vring_call(index, call)
            .map_err(refused("take a queue's interrupt"))?;
        active.interrupt.connect(call);
        kernel
            .set_vring_kick(index, &active.kick)
            .map_err(refused("take a queue's notifications"))
    }

    /// Serves queue `index` by the tap `fd`, or, with -1, no longer: when this returns, its memory isn't touched.
    fn set_backend(&self, index: usize, fd: RawFd) -> Result<(), Error> {
        let backend = vhost_vring_file {
            // 0 or 1.
            index: index as u32,
            fd,
        };
        // SAFETY: the request takes such a structure.
        let result = unsafe { ioctl_with_ref(&self.kernel, VHOST_NET_SET_BACKEND(), &backend) };
        if result < 0 {
            let source = vhost::Error::IoctlError(io::Error::last_os_error());
            return Err(refused("serve a queue by this tap interface")(source));
        }
        Ok(())
    }
}

impl MutEventSubscriber for Served {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (index, call) in (0..).zip(&self.calls) {
            // A descriptor of ours that epoll knows how to poll: only memory can be lacking.
            if let Err(error) = ops.add(Events::with_data(call, index, EventSet::IN)) {
                eprintln!("sealock-vmm: cannot watch vhost-net's interrupts: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        // Events are of one of the two.
        let index = events.data() as usize & 1;
        // Fails only if there is nothing to be read.
        if self.calls[index].read().is_ok() {
            self.queues[index].interrupt.trigger();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for index in 0..self.queues.len() {
            // Fails only for a queue that isn't served.
            let _ = self.set_backend(index, -1);
            self.queues[index].interrupt.disconnect();
        }
    }
}
