//! A pod's network by iperf3.

use anyhow::Result;
use sealock_tests::{
    ctr::Runtime,
    throughput::{self, Throughput},
};
use serde::Serialize;

use crate::{kind, report};

#[derive(Serialize)]
struct Net {
    sealock: Throughput,
    runc: Throughput,
}

pub fn run() -> Result<()> {
    // Or the first pod has one made while it is measured.
    kind::make_template()?;
    let net = Net {
        runc: throughput::measure(Runtime::Runc)?,
        sealock: throughput::measure(Runtime::Sealock)?,
    };
    println!(
        "{:14} {:>14} {:>14} {:>7}   {:>14} {:>14} {:>7}",
        "", "Sealock Mbit/s", "runc Mbit/s", "ratio", "Sealock ns/B", "runc ns/B", "ratio"
    );
    for (name, sealock, runc) in [
        ("pod to host", net.sealock.pod_to_host, net.runc.pod_to_host),
        ("host to pod", net.sealock.host_to_pod, net.runc.host_to_pod),
        ("pod to pod", net.sealock.pod_to_pod, net.runc.pod_to_pod),
    ] {
        println!(
            "{name:14} {:14.1} {:14.1} {:7.3}   {:14.2} {:14.2} {:7.2}",
            sealock.mbit_per_second,
            runc.mbit_per_second,
            sealock.mbit_per_second / runc.mbit_per_second,
            sealock.cpu_ns_per_byte,
            runc.cpu_ns_per_byte,
            sealock.cpu_ns_per_byte / runc.cpu_ns_per_byte
        );
    }
    report::figures("net", &net)
}
