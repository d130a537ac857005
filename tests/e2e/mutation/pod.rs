//! A pod that its shim is asked for directly: as fast as it can be, and with no client that reads a specification first.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    api::{
        CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, KillRequest, Mount,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, Status,
    },
    ttrpc::Code,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use sealock_tests::{
    ctr::{MINBASE, fresh_id},
    host::pids_of,
    mutation,
    task::Shim,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a container may take that has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long one may take that has been killed.
const DEATH: Duration = Duration::from_secs(10);

/// What came of a specification.
#[derive(Debug)]
pub enum Outcome {
    /// An error, in these words.
    Refused(String),
    /// A container that ran, and ended.
    Ran(Ran),
}

/// How a container ended.
#[derive(Debug)]
#[expect(dead_code, reason = "all of it is told of one that is wrong")]
pub struct Ran {
    /// The exit status.
    pub status: u32,
    /// Whether it had to be killed.
    pub killed: bool,
    /// What it printed.
    pub output: String,
    /// What it complained of.
    pub errors: String,
}

/// A pod, of one container so far.
pub struct Pod {
    shim: Shim,
    id: String,
    /// Of what stands for its own container, once that is created.
    pid: u32,
    place: TempDir,
}

impl Pod {
    /// The pod named `id` whose own container `spec` describes, or what became of that: nothing is left of it then.
    pub fn start(id: &str, spec: &Value) -> Result<Self, Outcome> {
        let mut pod = Self::with_shim(id, spec)?;
        match pod
            .create(id, &[])
            .and_then(|pid| pod.start_task(id).map(|()| pid))
        {
            Ok(pid) => {
                pod.pid = pid;
                Ok(pod)
            }
            Err((_, words)) => {
                pod.end();
                Err(Outcome::Refused(words))
            }
        }
    }

    /// What becomes of a container with this specification that is a pod by itself; it is deleted whatever that is.
    pub fn try_alone(id: &str, spec: &Value) -> Outcome {
        match Self::with_shim(id, spec) {
            Err(refused) => refused,
            Ok(pod) => {
                let outcome = pod.become_of(id);
                pod.shut_down();
                outcome
            }
        }
    }

    fn with_shim(id: &str, spec: &Value) -> Result<Self, Outcome> {
        let place = TempDir::new_in("/run").unwrap();
        let bundle = place.path().join(id);
        write_bundle(&bundle, spec);
        let shim = Shim::start(&bundle, id).map_err(Outcome::Refused)?;
        Ok(Self {
            shim,
            id: id.to_owned(),
            pid: 0,
            place,
        })
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.place.path().join(id)
    }

    /// What its containers have on the host: what is shared with the guest, and mounts.
    pub fn shared(&self) -> BTreeSet<PathBuf> {
        let pod = Path::new("/run/sealock/default").join(&self.id);
        let entries = fs::read_dir(pod.join("share")).unwrap();
        let entries = entries.map(|entry| entry.unwrap().path());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let places = places.map(PathBuf::from).filter(|place| place.starts_with(&pod));
        entries.chain(places).collect()
    }

    /// What its shim has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle(&self.id).join("log")).unwrap()
    }

    /// What becomes of a container with this specification; it is deleted whatever that is.
    pub fn try_out(&self, spec: &Value) -> Outcome {
        let id = fresh_id();
        let bundle = self.bundle(&id);
        write_bundle(&bundle, spec);
        let outcome = self.become_of(&id);
        let known = self.state(&id).map(|state| state.status);
        assert_eq!(known.map_err(|(code, _)| code), Err(Code::NOT_FOUND));
        fs::remove_dir_all(&bundle).unwrap();
        outcome
    }

    /// Creates the container of a bundle, starts it, waits for its end and deletes it, as far as it comes.
    fn become_of(&self, id: &str) -> Outcome {
        if let Err((_, words)) = self.create(id, &[root(&self.bundle(id))]) {
            return Outcome::Refused(words);
        }
        let outcome = match self.start_task(id) {
            Err((_, words)) => Outcome::Refused(words),
            Ok(()) => {
                let (status, killed) = self.end_of(id);
                let [output, errors] = ["out", "err"].map(|name| {
                    let printed = fs::read(self.bundle(id).join(name)).unwrap_or_default();
                    String::from_utf8_lossy(&printed).into_owned()
                });
                Outcome::Ran(Ran {
                    status,
                    killed,
                    output,
                    errors,
                })
            }
        };
        self.delete(id);
        outcome
    }

    /// Deletes its own container, the last, and with it the pod.
    pub fn end(self) {
        // There may be none.
        if self.kill(&self.id).is_ok() {
            self.end_of(&self.id);
            self.delete(&self.id);
        }
        self.shut_down();
    }

    fn shut_down(self) {
        let mut request = ShutdownRequest::new();
        request.id.clone_from(&self.id);
        self.shim.call::<_, Empty>("Shutdown", &request).unwrap();
    }

    fn kill(&self, id: &str) -> Result<(), (Code, String)> {
        let mut request = KillRequest::new();
        id.clone_into(&mut request.id);
        request.signal = 9;
        self.shim.call::<_, Empty>("Kill", &request)?;
        Ok(())
    }

    fn create(&self, id: &str, rootfs: &[Mount]) -> Result<u32, (Code, String)> {
        let bundle = self.bundle(id);
        let mut request = CreateTaskRequest::new();
        id.clone_into(&mut request.id);
        request.bundle = bundle.display().to_string();
        request.rootfs = rootfs.to_vec();
        request.stdout = format!("file://{}", bundle.join("out").display());
        request.stderr = format!("file://{}", bundle.join("err").display());
        let created = self.shim.call::<_, CreateTaskResponse>("Create", &request)?;
        Ok(created.pid)
    }

    fn start_task(&self, id: &str) -> Result<(), (Code, String)> {
        let mut request = StartRequest::new();
        id.clone_into(&mut request.id);
        self.shim.call::<_, StartResponse>("Start", &request)?;
        Ok(())
    }

    fn state(&self, id: &str) -> Result<StateResponse, (Code, String)> {
        let mut request = StateRequest::new();
        id.clone_into(&mut request.id);
        self.shim.call("State", &request)
    }

    fn delete(&self, id: &str) {
        let mut request = DeleteRequest::new();
        id.clone_into(&mut request.id);
        self.shim.call::<_, DeleteResponse>("Delete", &request).unwrap();
    }

    /// Waits for a container's end; one that takes too long is killed.
    fn end_of(&self, id: &str) -> (u32, bool) {
        if let Some(status) = self.wait(id, PATIENCE) {
            return (status, false);
        }
        // It may have ended just now.
        let _ = self.kill(id);
        let status = self.wait(id, DEATH);
        (status.expect("who is killed dies"), true)
    }

    fn wait(&self, id: &str, patience: Duration) -> Option<u32> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let state = self.state(id).unwrap();
            if state.status.enum_value() == Ok(Status::STOPPED) {
                return Some(state.exit_status);
            }
            // `Wait` has no deadline of its own, and the pod is to be left usable when it passes.
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // No client knows this pod, and the tests after this one are to find a clean host.
        if thread::panicking() {
            for pid in pids_of("containerd-shim-sealock-v2") {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
            }
        }
    }
}

fn write_bundle(bundle: &Path, spec: &Value) {
    for directory in [bundle, &bundle.join("upper"), &bundle.join("work")] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    // Where a shim logs.
    fs::write(bundle.join("log"), "").unwrap();
}

/// The root file system for the container of this bundle, as a snapshotter would have it mounted.
fn root(bundle: &Path) -> Mount {
    let mut mount = Mount::new();
    "overlay".clone_into(&mut mount.type_);
    "overlay".clone_into(&mut mount.source);
    mount.options = vec![
        format!("lowerdir={MINBASE}"),
        format!("upperdir={}", bundle.join("upper").display()),
        format!("workdir={}", bundle.join("work").display()),
    ];
    mount
}

/// The specification of a container of `pod` as Kubernetes would have it, with the files that are bound into it.
pub fn container_of(pod: &Pod) -> Value {
    let files = pod.bundle("files");
    fs::create_dir_all(files.join("data")).unwrap();
    for name in ["hosts", "hostname", "resolv.conf"] {
        fs::write(files.join(name), "").unwrap();
    }
    mutation::kubernetes(files.to_str().unwrap(), pod.pid)
}

/// A container of a pod that lives as long as the pod, and sees what there is in the guest.
pub struct Neighbour<'a> {
    pod: &'a Pod,
    id: String,
    stdin: File,
    stdout: BufReader<File>,
}

/// What a neighbour sees.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// How many threads the guest has, the kernel's among them.
    pub threads: u64,
    /// How much of the guest's memory is to be had, in KiB.
    pub available: u64,
    /// The guest's cgroups of containers.
    pub cgroups: String,
}

impl<'a> Neighbour<'a> {
    /// Starts it, beside containers as `spec` is.
    pub fn start(pod: &'a Pod, spec: &Value) -> Self {
        const SCRIPT: &str = "
            while read -r _; do
                read -r _ _ _ threads _ < /proc/loadavg
                while [ $name != MemAvailable: ]; do read -r name available _; done < /proc/meminfo
                echo ${threads#*/} $available /sys/fs/cgroup/sealock/*/
                name=none
            done";
        let mut spec = spec.clone();
        spec["process"]["args"] = json!(["/bin/sh", "-c", format!("name=none; {SCRIPT}")]);
        // It may do more than the others, and sees all of the guest's cgroups.
        spec["linux"]["seccomp"] = json!(null);
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
        }
        let id = fresh_id();
        let bundle = pod.bundle(&id);
        write_bundle(&bundle, &spec);
        let mut request = CreateTaskRequest::new();
        request.id.clone_from(&id);
        request.bundle = bundle.display().to_string();
        request.rootfs = vec![root(&bundle)];
        let fifo = |name: &str, path: &mut String| {
            let place = bundle.join(name);
            *path = place.display().to_string();
            mkfifo(&place, Mode::S_IRWXU).unwrap();
            // For both, so that nobody waits for the other side.
            OpenOptions::new().read(true).write(true).open(place).unwrap()
        };
        let stdin = fifo("in", &mut request.stdin);
        let stdout = fifo("out", &mut request.stdout);
        pod.shim
            .call::<_, CreateTaskResponse>("Create", &request)
            .unwrap();
        pod.start_task(&id).unwrap();
        Self {
            pod,
            id,
            stdin,
            stdout: BufReader::new(stdout),
        }
    }

    /// What there is now.
    pub fn look(&mut self) -> Sight {
        writeln!(self.stdin).unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let mut words = line.trim().splitn(3, ' ');
        let mut next = || words.next().unwrap().to_owned();
        Sight {
            threads: next().parse().unwrap(),
            available: next().parse().unwrap(),
            cgroups: next(),
        }
    }

    /// Ends it.
    pub fn end(self) {
        self.pod.kill(&self.id).unwrap();
        self.pod.end_of(&self.id);
        self.pod.delete(&self.id);
    }
}
