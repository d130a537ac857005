//! Further processes in a running container: as under runc.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    thread,
};

use sealock_tests::ctr::{self, Run, Runtime, ctr, fresh_id};

use crate::{Host, story, text};

const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::Sealock];

/// A container that does nothing; removed when dropped.
pub struct Idle(Run);

impl Idle {
    pub fn start(runtime: Runtime) -> Self {
        Self::run(Run::busybox(runtime, &["sleep", "1000"]))
    }

    pub fn run(run: Run) -> Self {
        let started = run.clone().flag(&["--detach"]).to_command().output().unwrap();
        assert!(started.status.success(), "{}", story(&started));
        Self(run)
    }

    pub fn id(&self) -> &str {
        self.0.id()
    }

    fn exec_command(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .args(["task", "exec", "--exec-id", &fresh_id()])
            .args(flags)
            .arg(self.id())
            .args(words);
        command
    }

    pub fn exec(&self, flags: &[&str], words: &[&str]) -> Output {
        let mut command = self.exec_command(flags, words);
        command.stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        ctr::delete(self.id());
    }
}

#[test]
fn a_process_has_its_own_user_directory_streams_and_status() {
    let host = Host::take();
    let told = BOTH.map(|runtime| {
        let idle = Idle::start(runtime);
        let outputs = [
            idle.exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]),
            idle.exec(&["--cwd", "/tmp"], &["pwd"]),
            idle.exec(&["--user", "1000:2000"], &["id"]),
            idle.exec(&[], &["sh", "-c", "kill -9 $$"]),
            idle.exec(&[], &["cat", "/proc/self/status"]),
        ];
        outputs.map(|output| {
            let lines = text(&output.stdout)
                .lines()
                .filter(|line| {
                    // Of the status, what is alike on two kernels.
                    !line.contains(':')
                        || ["Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs"]
                            .iter()
                            .any(|name| line.starts_with(name))
                })
                .map(str::to_owned)
                .collect::<Vec<_>>();
            (output.status.code(), lines, text(&output.stderr))
        })
    });
    assert_eq!(told[0], told[1]);
    assert_eq!(told[1][0], (Some(7), vec!["out".to_owned()], "err\n".to_owned()));
    host.assert_clean();
}

#[test]
fn input_reaches_a_process_and_ends() {
    let host = Host::take();
    let idle = Idle::start(Runtime::Sealock);
    let data = vec![b'x'; 3 << 20];
    let mut child = idle
        .exec_command(&[], &["wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&data));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(
        text(&output.stdout).trim(),
        (3 << 20).to_string(),
        "{}",
        story(&output)
    );
    drop(idle);
    host.assert_clean();
}

#[test]
fn a_program_that_cannot_be_run_is_told_as_runc_does() {
    let host = Host::take();
    for runtime in BOTH {
        let idle = Idle::start(runtime);
        let output = idle.exec(&[], &["nonesuch"]);
        assert!(!output.status.success());
        assert!(
            text(&output.stderr).contains(r#"exec: "nonesuch": executable file not found in $PATH"#),
            "{runtime:?}: {}",
            story(&output)
        );
        // The container is none the worse for it.
        assert_eq!(text(&idle.exec(&[], &["echo", "fine"]).stdout), "fine\n");
    }
    host.assert_clean();
}

#[test]
fn twenty_at_once_do_not_get_in_each_others_way() {
    let host = Host::take();
    let idle = Idle::start(Runtime::Sealock);
    thread::scope(|scope| {
        let all: Vec<_> = (0..20)
            .map(|number| {
                let idle = &idle;
                scope.spawn(move || idle.exec(&[], &["sh", "-c", &format!("echo {number}; exit {number}")]))
            })
            .collect();
        for (number, output) in all.into_iter().enumerate() {
            let output = output.join().unwrap();
            assert_eq!(text(&output.stdout), format!("{number}\n"), "{}", story(&output));
            assert_eq!(output.status.code(), i32::try_from(number).ok());
        }
    });
    drop(idle);
    host.assert_clean();
}

#[test]
fn a_process_dies_with_its_container() {
    let host = Host::take();
    for runtime in BOTH {
        let idle = Idle::start(runtime);
        let mut child = idle
            .exec_command(&[], &["sh", "-c", "echo up; exec sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        crate::exit_status::wait_for_line(&mut child, "up");
        let killed = ctr(&["task", "kill", "--signal", "SIGKILL", idle.id()]);
        assert!(killed.status.success(), "{}", story(&killed));
        assert_eq!(child.wait().unwrap().code(), Some(137), "{runtime:?}");
    }
    host.assert_clean();
}

#[test]
fn a_process_is_signalled_alone() {
    let host = Host::take();
    for runtime in BOTH {
        let idle = Idle::start(runtime);
        let name = fresh_id();
        let mut child = Command::new("ctr")
            .args(["task", "exec", "--exec-id", &name, idle.id()])
            .args(["sh", "-c", "echo up; exec sleep 1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        crate::exit_status::wait_for_line(&mut child, "up");
        let killed = ctr(&[
            "task",
            "kill",
            "--exec-id",
            &name,
            "--signal",
            "SIGKILL",
            idle.id(),
        ]);
        assert!(killed.status.success(), "{}", story(&killed));
        assert_eq!(child.wait().unwrap().code(), Some(137), "{runtime:?}");
        assert_eq!(text(&idle.exec(&[], &["echo", "fine"]).stdout), "fine\n");
    }
    host.assert_clean();
}
