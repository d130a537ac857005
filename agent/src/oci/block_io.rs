//! `linux.resources.blockIO`. A guest has no block devices of the host: a limit for one that is not there is refused by the
//! guest's kernel, and the error names the entry.

use super::{
    object::{Object, SpecError},
    resources::Setting,
};

/// The lists of limits, with their keys in `io.max`.
const THROTTLES: [(&str, &str); 4] = [
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
];

/// Reads the object.
///
/// # Errors
/// A weight or a device number that is none, or what cgroup v2 does not have.
pub fn parse(mut block_io: Object, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    if let Some(weight) = weight(&mut block_io)? {
        settings.push(Setting::new(
            block_io.field("weight"),
            "io.weight",
            format!("default {weight}"),
        ));
    }
    for mut item in block_io.objects("weightDevice")? {
        let device = device(&mut item)?;
        let field = item.path().to_owned();
        if let Some(weight) = weight(&mut item)? {
            settings.push(Setting::new(field, "io.weight", format!("{device} {weight}")));
        }
        item.finish()?;
    }
    for (list, key) in THROTTLES {
        for mut item in block_io.objects(list)? {
            let device = device(&mut item)?;
            let rate: u64 = item.take_or_default("rate")?;
            let rate = if rate == 0 {
                "max".to_owned()
            } else {
                rate.to_string()
            };
            let field = item.path().to_owned();
            item.finish()?;
            settings.push(Setting::new(field, "io.max", format!("{device} {key}={rate}")));
        }
    }
    block_io.finish()
}

/// A weight of 10 to 1000 in cgroup v2's 1 to 10000; absent or 0 is none asked for.
fn weight(object: &mut Object) -> Result<Option<u64>, SpecError> {
    match object.take::<u64>("weight")? {
        None | Some(0) => Ok(None),
        Some(weight @ 10..=1000) => Ok(Some(1 + (weight - 10) * 9_999 / 990)),
        Some(_) => Err(SpecError::invalid(
            object.field("weight"),
            "is not between 10 and 1000",
        )),
    }
}

fn device(item: &mut Object) -> Result<String, SpecError> {
    let mut number = |name: &str| {
        let value: i64 = item.take_or_default(name)?;
        u32::try_from(value)
            .map_err(|_| SpecError::invalid(item.field(name), format!("{value} is not a device number")))
    };
    Ok(format!("{}:{}", number("major")?, number("minor")?))
}
