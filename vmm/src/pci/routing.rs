//! KVM's interrupt controllers, told of messages by this process or, by an eventfd, from anywhere (Linux,
//! `Documentation/virt/kvm/api.rst`: `KVM_SIGNAL_MSI`, `KVM_SET_GSI_ROUTING`, `KVM_IRQFD`).

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
};

use kvm_bindings::{
    KVM_IOAPIC_NUM_PINS, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::msix::{Message, Messenger};

/// The lines of a PIC.
const PIC_PINS: u32 = 8;

/// KVM's interrupt controllers.
pub struct KvmMessenger {
    vm: Arc<VmFd>,
    routes: Mutex<BTreeMap<RawFd, Route>>,
}

/// What an eventfd sends, and by which of KVM's global interrupt numbers.
#[derive(Clone, Copy)]
struct Route {
    gsi: u32,
    message: Message,
}

impl KvmMessenger {
    /// Those of `vm`, which has them all in the kernel.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            routes: Mutex::default(),
        }
    }
}

impl Messenger for KvmMessenger {
    #[allow(clippy::cast_possible_truncation)]
    fn send(&self, message: Message) {
        // A message to nowhere is the guest's mistake, and the guest misses its interrupt.
        let _ = self.vm.signal_msi(kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        });
    }

    fn route(&self, event: &EventFd, message: Option<Message>) -> io::Result<()> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = event.as_raw_fd();
        let Some(message) = message else {
            return match routes.remove(&fd) {
                // Its entry in KVM's table leads from nowhere now, and goes with the next change.
                Some(route) => Ok(self.vm.unregister_irqfd(event, route.gsi)?),
                None => Ok(()),
            };
        };
        let known = routes.get(&fd).map(|route| route.gsi);
        let gsi = known.unwrap_or_else(|| free(&routes));
        let mut changed = routes.clone();
        changed.insert(fd, Route { gsi, message });
        self.vm.set_gsi_routing(&table(&changed)?)?;
        if known.is_none() {
            self.vm.register_irqfd(event, gsi)?;
        }
        *routes = changed;
        Ok(())
    }
}

/// The first number that is neither a line of the interrupt controllers nor in use.
fn free(routes: &BTreeMap<RawFd, Route>) -> u32 {
    let mut gsi = KVM_IOAPIC_NUM_PINS;
    while routes.values().any(|route| route.gsi == gsi) {
        gsi += 1;
    }
    gsi
}

/// All of KVM's table: the lines of the interrupt controllers, as they are without one, and the messages.
fn table(routes: &BTreeMap<RawFd, Route>) -> io::Result<KvmIrqRouting> {
    let mut entries = Vec::new();
    for gsi in 0..KVM_IOAPIC_NUM_PINS {
        let mut line = |irqchip, pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = irqchip;
            entry.u.irqchip.pin = pin;
            entries.push(entry);
        };
        match gsi / PIC_PINS {
            0 => line(KVM_IRQCHIP_PIC_MASTER, gsi),
            1 => line(KVM_IRQCHIP_PIC_SLAVE, gsi % PIC_PINS),
            _ => {}
        }
        line(KVM_IRQCHIP_IOAPIC, gsi);
    }
    #[allow(clippy::cast_possible_truncation)]
    entries.extend(routes.values().map(|route| {
        let mut entry = kvm_irq_routing_entry {
            gsi: route.gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = route.message.address as u32;
        entry.u.msi.address_hi = (route.message.address >> 32) as u32;
        entry.u.msi.data = route.message.data;
        entry
    }));
    KvmIrqRouting::from_entries(&entries).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again_and_the_controllers_lines_stay() {
        let message = Message::default();
        let mut routes = BTreeMap::new();
        for fd in [7, 9, 8] {
            let gsi = free(&routes);
            routes.insert(fd, Route { gsi, message });
        }
        assert_eq!(routes[&8].gsi, KVM_IOAPIC_NUM_PINS + 2);
        routes.remove(&9);
        assert_eq!(free(&routes), KVM_IOAPIC_NUM_PINS + 1);
        let table = table(&routes).unwrap();
        let of = |gsi| {
            let all = table.as_slice().iter().filter(move |entry| entry.gsi == gsi);
            all.map(|entry| entry.type_).collect::<Vec<_>>()
        };
        assert_eq!(of(4), [KVM_IRQ_ROUTING_IRQCHIP; 2]);
        assert_eq!(of(KVM_IOAPIC_NUM_PINS - 1), [KVM_IRQ_ROUTING_IRQCHIP]);
        assert_eq!(of(KVM_IOAPIC_NUM_PINS + 2), [KVM_IRQ_ROUTING_MSI]);
        assert!(of(KVM_IOAPIC_NUM_PINS + 1).is_empty());
    }
}
