//! Broken specifications, through the host's preparation and the guest's reading: a plan, or an error that names the field.

use std::fs;

use sealock_sandbox::{cleanup, share::Share, spec};
use sealock_tests::mutation::{first_word, kubernetes, names, plain_container, variant};

use super::Container;

/// How many variants of each specification.
const VARIANTS: u64 = 1000;

const POD_PID: u32 = 17;

#[test]
fn a_broken_specification_is_a_plan_or_an_error_that_names_the_field() {
    let top = tempfile::tempdir().unwrap();
    let files = top.path().join("files");
    fs::create_dir_all(files.join("data")).unwrap();
    for name in ["hosts", "hostname", "resolv.conf"] {
        fs::write(files.join(name), "").unwrap();
    }
    let below = top.path().join("share");
    fs::create_dir(&below).unwrap();
    let share = Share::create(below).expect("this test needs root");
    let bases = [
        kubernetes(files.to_str().unwrap(), POD_PID),
        plain_container("rootfs"),
    ];
    let (mut plans, mut refused) = (0, 0);
    for base in &bases {
        for number in 0..VARIANTS {
            let variant = variant(base, number);
            let known = [names(base), names(&variant.spec)].concat();
            let mut container = share.add("c1").unwrap();
            let numbers = spec::Numbers {
                pod: POD_PID,
                containers: &[],
            };
            let prepared = spec::prepare(variant.spec, "c1", top.path(), numbers, &mut container);
            let outcome = match prepared {
                Ok(spec) => Container::parse(&spec)
                    .map(drop)
                    .map_err(|error| error.to_string()),
                // The whole of it is too large, or one field is wrong.
                Err(spec::Error::TooLarge(_)) => Err("root".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            container.remove().unwrap();
            match outcome {
                Ok(()) => plans += 1,
                Err(message) => {
                    let field = first_word(&message);
                    assert!(
                        known.iter().any(|name| name == field),
                        "{}: no field is named by {message:?}",
                        variant.change
                    );
                    refused += 1;
                }
            }
        }
    }
    drop(share);
    cleanup::unmount_below(top.path()).unwrap();
    // Both happen, often: otherwise the specifications themselves were wrong.
    assert!(plans > 200 && refused > 200, "{plans} plans, {refused} refused");
}
