//! `sealock trace`: where the time of a start went, as a waterfall.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sealock_chart::waterfall;
use sealock_sandbox::{
    Config,
    state::{self, Found},
    timeline::{self, Step, steps::spans},
};

/// Which start to show, and how.
#[derive(clap::Args)]
pub struct Arguments {
    /// The pod's id or the beginning of it (the newest start if not given)
    id: Option<String>,
    /// containerd's namespace, where pods in several have this id
    #[arg(long, conflicts_with = "log")]
    namespace: Option<String>,
    /// Look in containerd's log, which also has pods that are gone; `-` stands for standard input
    #[arg(long)]
    log: Option<PathBuf>,
    /// Also draw it into this file, as SVG
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Prints it, and draws it where that is asked for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let id = arguments.id.as_deref();
    let (pod, steps) = match &arguments.log {
        Some(log) => newest_in(log, id)?,
        None => of_a_pod(Config::load()?.state_dir(), arguments.namespace.as_deref(), id)?,
    };
    print!("{}", table(&pod, &steps));
    if let Some(path) = &arguments.svg {
        fs::write(path, picture(&pod, &steps)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The newest timeline in a log, or the newest of the pod `id`.
fn newest_in(log: &Path, id: Option<&str>) -> Result<(String, Vec<Step>)> {
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
            .filter(|(sandbox, _)| id.is_none_or(|id| sandbox.starts_with(id)))
            .or(newest);
    }
    newest.with_context(|| {
        let whose = id.map_or(String::new(), |id| format!(" of {id}"));
        format!(
            "no timeline{whose} in {}: is containerd's log level `info` or more?",
            log.display()
        )
    })
}

/// The timeline of a pod that is there: of the only one whose id is `id`, or begins with it, or of the one that was started last.
fn of_a_pod(state_dir: &Path, namespace: Option<&str>, id: Option<&str>) -> Result<(String, Vec<Step>)> {
    let mut pods =
        state::pods(state_dir).with_context(|| format!("cannot look for pods in {}", state_dir.display()))?;
    pods.retain(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace));
    let pod = match id {
        Some(id) => the_one(pods, id)?,
        None => pods
            .into_iter()
            .filter_map(|pod| Some((timeline::kept_since(&pod.path)?, pod)))
            .max_by_key(|(since, _)| *since)
            .map(|(_, pod)| pod)
            .context("no pod of Sealock's runs: `sealock trace --log FILE` finds those that did in containerd's log")?,
    };
    match timeline::kept(&pod.path) {
        Ok(steps) => Ok((pod.id, steps)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "the pod {} has no timeline yet: its first container has not been started",
                pod.id
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot read the timeline of the pod {}", pod.id)),
    }
}

fn the_one(pods: Vec<Found>, id: &str) -> Result<Found> {
    let exact = pods.iter().any(|pod| pod.id == id);
    let mut fitting = pods.into_iter().filter(|pod| match exact {
        true => pod.id == id,
        false => pod.id.starts_with(id),
    });
    let pod = fitting.next().with_context(|| {
        format!("no pod {id} runs: `sealock trace --log FILE {id}` finds it in containerd's log if it did")
    })?;
    match fitting.next() {
        None => Ok(pod),
        Some(other) if exact => bail!(
            "the pod {id} is in the namespaces {} and {}: say which by --namespace",
            pod.namespace,
            other.namespace
        ),
        Some(other) => bail!("{id} is the beginning of {} and of {}", pod.id, other.id),
    }
}

/// Each step in a line: when it was reached, what it took, by whom, and a bar for the time it took.
fn table(pod: &str, steps: &[Step]) -> String {
    /// Of the bars, in characters.
    const WIDTH: f64 = 56.0;
    let end = steps.iter().map(|step| step.ms).fold(0.001, f64::max);
    let column = |ms: f64| (ms / end * WIDTH) as usize;
    let mut text = format!("start of {pod}\n   at ms   took ms  {:<11}{:<22}\n", "by", "step");
    for span in spans(steps) {
        let (from, to) = (column(span.from), column(span.to));
        let bar = if to > from {
            "█".repeat(to - from)
        } else {
            "▏".to_owned()
        };
        text += &format!(
            "{:8.1}  {:8.1}  {:<11}{:<22}{:from$}{bar}\n",
            span.to,
            span.to - span.from,
            span.actor.name(),
            span.step,
            ""
        );
    }
    text
}

fn picture(pod: &str, steps: &[Step]) -> String {
    waterfall::draw(&format!("start of {pod}"), &spans(steps))
}

#[cfg(test)]
mod tests {
    use sealock_sandbox::Timeline;

    use super::*;

    fn steps() -> [Step; 3] {
        [
            ("shim_start", 0.0),
            ("cgroup_entered", 60.0),
            ("vmm_exec", 120.25),
        ]
        .map(|(step, ms)| Step {
            step: step.to_owned(),
            ms,
        })
    }

    #[test]
    fn a_step_is_shown_with_its_time_and_what_it_took() {
        let table = table("demo", &steps());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "start of demo");
        assert_eq!(
            lines[4],
            format!(
                "   120.2      60.2  vmm        vmm_exec              {}{}",
                " ".repeat(27),
                "█".repeat(29)
            )
        );
        let picture = picture("demo", &steps());
        assert!(
            picture.contains(">vmm_exec<") && picture.contains("start of demo"),
            "{picture}"
        );
    }

    #[test]
    fn a_pod_is_found_by_the_beginning_of_its_id_if_that_is_of_one_only() {
        let state = tempfile::tempdir().unwrap();
        let mut pods = Vec::new();
        for (namespace, id, ms) in [
            ("a", "web-1", 1),
            ("b", "web-1", 2),
            ("a", "web-12", 3),
            ("a", "db", 4),
        ] {
            let pod = state::PodDir::create(state.path(), namespace, id).unwrap();
            let mut timeline = Timeline::default();
            timeline.mark_at("shim_start", 0);
            timeline.mark_at("vmm_exec", ms * 1_000_000);
            timeline.keep(pod.path()).unwrap();
            pods.push(pod);
        }
        let of = |namespace: Option<&str>, id: &str| {
            of_a_pod(state.path(), namespace, Some(id))
                .map(|(pod, steps)| (pod, steps[1].ms))
                .map_err(|error| error.to_string())
        };
        assert_eq!(of(None, "d"), Ok(("db".to_owned(), 4.0)));
        assert_eq!(of(Some("a"), "web-1"), Ok(("web-1".to_owned(), 1.0)));
        assert_eq!(of(Some("b"), "web"), Ok(("web-1".to_owned(), 2.0)));
        assert!(of(None, "web-1").unwrap_err().contains("--namespace"));
        assert!(of(Some("a"), "web").unwrap_err().contains("beginning of"));
        assert!(of(None, "gone").unwrap_err().contains("--log"));
        let newest = File::options()
            .write(true)
            .open(pods[3].path().join("timeline.json"))
            .unwrap();
        newest
            .set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(60))
            .unwrap();
        assert_eq!(of_a_pod(state.path(), None, None).unwrap().0, "db");

        let _young = state::PodDir::create(state.path(), "a", "young").unwrap();
        assert!(of(None, "young").unwrap_err().contains("not been started"));
    }
}
