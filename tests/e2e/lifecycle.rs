//! What a shim answers in each state: with the codes of runc's, so that containerd and its clients can tell errors apart.

use containerd_shim_protos::{
    api::{
        CloseIORequest, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
        PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, StartRequest, StartResponse,
        StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    },
    protobuf::well_known_types::any::Any,
    ttrpc::Code,
};
use sealock_tests::{
    ctr::{Runtime, ctr},
    task::Shim,
};

use crate::{Host, exec::Idle, story, text};

/// What a step was, and what came of it.
type Told = Vec<(&'static str, Code)>;

/// Speaks to one task's shim and notes what it says.
struct Script<'a> {
    shim: Shim,
    id: &'a str,
    told: Told,
}

impl Script<'_> {
    fn note<T>(&mut self, step: &'static str, answer: Result<T, (Code, String)>) -> Option<T> {
        let (code, value) = match answer {
            Ok(value) => (Code::OK, Some(value)),
            Err((code, words)) => {
                assert!(!words.is_empty(), "{step} is refused without a word");
                (code, None)
            }
        };
        self.told.push((step, code));
        value
    }

    fn start(&mut self, step: &'static str, exec: &str) {
        let mut request = StartRequest::new();
        self.id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        let answer = self.shim.call::<_, StartResponse>("Start", &request);
        self.note(step, answer);
    }

    fn delete(&mut self, step: &'static str, exec: &str) {
        let mut request = DeleteRequest::new();
        self.id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        let answer = self.shim.call::<_, DeleteResponse>("Delete", &request);
        self.note(step, answer);
    }

    fn state(&mut self, step: &'static str, id: &str, exec: &str) {
        let mut request = StateRequest::new();
        id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        let answer = self.shim.call::<_, StateResponse>("State", &request);
        self.note(step, answer);
    }

    fn kill(&mut self, step: &'static str, exec: &str) {
        let mut request = KillRequest::new();
        self.id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        request.signal = 9;
        let answer = self.shim.call::<_, Empty>("Kill", &request);
        self.note(step, answer);
    }

    fn await_end(&mut self, exec: &str) {
        let mut request = StateRequest::new();
        self.id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        loop {
            let state: StateResponse = self.shim.call("State", &request).unwrap();
            if state.status.enum_value() == Ok(Status::STOPPED) {
                assert_eq!(state.exit_status, 137);
                return;
            }
        }
    }

    fn exec(&mut self, step: &'static str, exec: &str) {
        let mut request = ExecProcessRequest::new();
        self.id.clone_into(&mut request.id);
        exec.clone_into(&mut request.exec_id);
        let mut spec = Any::new();
        "types.containerd.io/opencontainers/runtime-spec/1/Process".clone_into(&mut spec.type_url);
        spec.value =
            br#"{"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}"#
                .to_vec();
        request.spec = Some(spec).into();
        let answer = self.shim.call::<_, Empty>("Exec", &request);
        self.note(step, answer);
    }

    fn pause(&mut self, step: &'static str) {
        let mut request = PauseRequest::new();
        self.id.clone_into(&mut request.id);
        let answer = self.shim.call::<_, Empty>("Pause", &request);
        self.note(step, answer);
    }

    fn resume(&mut self, step: &'static str) {
        let mut request = ResumeRequest::new();
        self.id.clone_into(&mut request.id);
        let answer = self.shim.call::<_, Empty>("Resume", &request);
        self.note(step, answer);
    }

    fn update(&mut self, step: &'static str) {
        let mut request = UpdateTaskRequest::new();
        self.id.clone_into(&mut request.id);
        let mut resources = Any::new();
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
            .clone_into(&mut resources.type_url);
        resources.value = br#"{"pids": {"limit": 100}}"#.to_vec();
        request.resources = Some(resources).into();
        let answer = self.shim.call::<_, Empty>("Update", &request);
        self.note(step, answer);
    }

    fn others(&mut self) {
        let mut resize = ResizePtyRequest::new();
        self.id.clone_into(&mut resize.id);
        (resize.width, resize.height) = (80, 24);
        let answer = self.shim.call::<_, Empty>("ResizePty", &resize);
        self.note("resize without a terminal", answer);
        let mut close = CloseIORequest::new();
        self.id.clone_into(&mut close.id);
        close.stdin = true;
        let answer = self.shim.call::<_, Empty>("CloseIO", &close);
        self.note("close the input", answer);
        "nonesuch".clone_into(&mut close.exec_id);
        let answer = self.shim.call::<_, Empty>("CloseIO", &close);
        self.note("close the input of an unknown process", answer);
        let mut stats = StatsRequest::new();
        self.id.clone_into(&mut stats.id);
        let answer = self.shim.call::<_, StatsResponse>("Stats", &stats);
        self.note("figures", answer);
        "nonesuch".clone_into(&mut stats.id);
        let answer = self.shim.call::<_, StatsResponse>("Stats", &stats);
        self.note("figures of an unknown container", answer);
        let mut pids = PidsRequest::new();
        self.id.clone_into(&mut pids.id);
        let answer = self.shim.call::<_, PidsResponse>("Pids", &pids);
        self.note("processes", answer);
    }
}

fn play(runtime: Runtime) -> Told {
    let idle = Idle::start(runtime);
    let mut script = Script {
        shim: Shim::of(idle.id()),
        id: idle.id(),
        told: Told::new(),
    };
    script.state("state of an unknown container", "nonesuch", "");
    script.state("state of an unknown process", idle.id(), "nonesuch");
    script.others();

    script.start("start a running one", "");
    script.delete("delete a running one", "");
    script.resume("resume a running one");
    script.update("update a running one");
    script.kill("kill an unknown process", "nonesuch");
    script.delete("delete an unknown process", "nonesuch");
    script.start("start an unknown process", "nonesuch");

    script.exec("add a process", "e1");
    script.exec("add it again", "e1");
    script.state("state of an added process", idle.id(), "e1");
    script.kill("kill an added process", "e1");
    script.start("start a process", "e1");
    // runc's shim of containerd 1.7 miscounts its processes by these, and crashes later.
    let again = ["start it again", "start an ended process"];
    let start_again = |script: &mut Script<'_>, step| {
        if runtime == Runtime::Runc {
            script.told.push((step, Code::UNKNOWN));
        } else {
            script.start(step, "e1");
        }
    };
    start_again(&mut script, again[0]);
    script.delete("delete a running process", "e1");
    script.kill("kill a process", "e1");
    script.await_end("e1");
    script.kill("kill an ended process", "e1");
    start_again(&mut script, again[1]);
    script.delete("delete an ended process", "e1");
    script.state("state of a deleted process", idle.id(), "e1");
    script.exec("use its name again", "e1");
    script.delete("delete a process that was never started", "e1");

    script.pause("pause");
    script.pause("pause a paused one");
    script.start("start a paused one", "");
    script.delete("delete a paused one", "");
    script.exec("add a process to a paused one", "e2");
    script.resume("resume");

    script.kill("kill", "");
    script.await_end("");
    script.kill("kill an ended one", "");
    script.start("start an ended one", "");
    script.pause("pause an ended one");
    script.resume("resume an ended one");
    script.update("update an ended one");
    script.exec("add a process to an ended one", "e3");
    script.state("state of an ended one", idle.id(), "");
    script.told
}

#[test]
fn a_shim_answers_with_the_codes_of_runcs() {
    let host = Host::take();
    let (runc, sealock) = (play(Runtime::Runc), play(Runtime::Sealock));
    let mut different = Vec::new();
    for ((step, theirs), (same_step, ours)) in runc.iter().zip(&sealock) {
        assert_eq!(step, same_step);
        // Where runc's shim only says that something is wrong, ours says what kind of wrong.
        let right = match theirs {
            Code::UNKNOWN => [Code::FAILED_PRECONDITION, Code::NOT_FOUND].contains(ours),
            other => ours == other,
        };
        if !right {
            different.push(format!("{step}: {ours:?}; runc's shim: {theirs:?}"));
        }
    }
    assert_eq!(different, Vec::<String>::new());
    assert_eq!(runc.len(), sealock.len());
    host.assert_clean();
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let host = Host::take();
    let idle = Idle::run(sealock_tests::ctr::Run::busybox(
        Runtime::Sealock,
        &["sh", "-c", "while :; do echo >> /ticks; sleep 0.1; done"],
    ));
    let ticks = || -> u64 {
        let output = idle.exec(&[], &["wc", "-l", "/ticks"]);
        text(&output.stdout)
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{}", story(&output)))
    };
    let state = || text(&ctr(&["task", "ls"]).stdout);
    let line = |state: &str| {
        let line = state.lines().find(|line| line.starts_with(idle.id()));
        line.unwrap_or_default().to_owned()
    };
    let before = ticks();
    let paused = ctr(&["task", "pause", idle.id()]);
    assert!(paused.status.success(), "{}", story(&paused));
    assert!(line(&state()).ends_with("PAUSED"), "{}", state());
    let refused = idle.exec(&[], &["true"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("paused"));
    let resumed = ctr(&["task", "resume", idle.id()]);
    assert!(resumed.status.success(), "{}", story(&resumed));
    assert!(line(&state()).ends_with("RUNNING"), "{}", state());
    let after = ticks();
    while ticks() == after {}
    assert!(after >= before);
    drop(idle);
    host.assert_clean();
}

#[test]
fn limits_change_while_a_container_runs() {
    let host = Host::take();
    let cgroup = "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro";
    let idle = Idle::run(
        sealock_tests::ctr::Run::busybox(Runtime::Sealock, &["sleep", "1000"]).flag(&["--mount", cgroup]),
    );
    let shim = Shim::of(idle.id());
    let mut request = UpdateTaskRequest::new();
    idle.id().clone_into(&mut request.id);
    let mut resources = Any::new();
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".clone_into(&mut resources.type_url);
    resources.value = br#"{"pids": {"limit": 77}, "memory": {"limit": 33554432}}"#.to_vec();
    request.resources = Some(resources).into();
    shim.call::<_, Empty>("Update", &request).unwrap();
    let limits = idle.exec(
        &[],
        &[
            "sh",
            "-c",
            "cd /sys/fs/cgroup/$(sed s/^0::// /proc/1/cgroup) && cat pids.max memory.max",
        ],
    );
    assert_eq!(text(&limits.stdout), "77\n33554432\n", "{}", story(&limits));
    request.resources.mut_or_insert_default().value = b"nonsense".to_vec();
    let refused = shim.call::<_, Empty>("Update", &request).unwrap_err();
    assert_eq!(refused.0, Code::INVALID_ARGUMENT);
    drop(idle);
    host.assert_clean();
}
