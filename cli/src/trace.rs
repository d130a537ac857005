//! `sealock trace`: where the time of a start went.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result};
use sealock_sandbox::timeline::{self, Step};

/// Prints the newest timeline in `log`, or the newest of the pod `id`.
pub fn run(log: &Path, id: Option<&str>) -> Result<()> {
    let reader: Box<dyn BufRead> = if log == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(log).with_context(|| format!("cannot open {}", log.display()))?;
        Box::new(BufReader::new(file))
    };
    let mut newest = None;
    for line in reader.split(b'\n') {
        let line = line.with_context(|| format!("cannot read {}", log.display()))?;
        // Other programs' lines may hold anything.
        let line = String::from_utf8_lossy(&line);
        newest = timeline::parse(&line)
            .filter(|(sandbox, _)| id.is_none_or(|id| id == sandbox))
            .or(newest);
    }
    let (sandbox, steps) = newest.with_context(|| {
        let whose = id.map_or(String::new(), |id| format!(" of {id}"));
        format!(
            "no timeline{whose} in {}: is containerd's log level `info` or more?",
            log.display()
        )
    })?;
    print!("{}", table(&sandbox, &steps));
    Ok(())
}

fn table(sandbox: &str, steps: &[Step]) -> String {
    let mut text = format!("start of {sandbox}\n  at ms    took ms  step\n");
    let mut before = 0.0;
    for Step { step, ms } in steps {
        text += &format!("{ms:7.1}  {:9.1}  {step}\n", ms - before);
        before = *ms;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_with_its_time_and_what_it_took() {
        let steps = [("shim_start", 0.0), ("agent_hello", 120.25)].map(|(step, ms)| Step {
            step: step.to_owned(),
            ms,
        });
        assert_eq!(
            table("demo", &steps),
            "start of demo\n  at ms    took ms  step\n    0.0        0.0  shim_start\n  120.2      120.2  agent_hello\n"
        );
    }
}
