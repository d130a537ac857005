//! Terminals, as a person at one sees them: the same under runc.

use sealock_tests::{
    ctr::{Run, Runtime, fresh_id},
    pty::Pty,
};

use crate::{Host, exec::Idle};

const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::Sealock];

/// What busybox's shell prompts with as root in the root directory.
const PROMPT: &str = "/ # ";

fn shell(runtime: Runtime) -> Pty {
    let run = Run::busybox(runtime, &["sh"]).flag(&["--rm", "--tty", "--env", "TERM=linux"]);
    let mut pty = Pty::spawn(run.to_command(), 24, 80);
    pty.wait_for(PROMPT);
    pty
}

fn type_as_a_person(pty: &mut Pty) {
    assert_eq!(pty.run("echo one", PROMPT), "one\n");
    // Up brings the last line back.
    assert_eq!(pty.run("\x1b[A", PROMPT), "one\n");
    // Left goes back within the line.
    assert_eq!(pty.run("echo ab\x1b[DX", PROMPT), "aXb\n");
    // Backspace.
    assert_eq!(pty.run("echo abc\x7f\x7fz", PROMPT), "az\n");
    assert_eq!(
        pty.run("test -t 0 && test -t 1 && test -t 2 && echo yes", PROMPT),
        "yes\n"
    );
    // The shell's own sleep would miss a signal that comes just before it.
    pty.send("sh -c 'echo go; exec sleep 1000'\r");
    pty.wait_for("\ngo\r");
    pty.send("\x03");
    pty.wait_for(PROMPT);
    assert_eq!(pty.run("echo $?", PROMPT), "130\n");
}

#[test]
fn a_shell_takes_keys_and_ends_with_its_status() {
    let host = Host::take();
    for runtime in BOTH {
        let mut pty = shell(runtime);
        type_as_a_person(&mut pty);
        // Ctrl-D on an empty line ends it with the last command's status.
        pty.run("(exit 7)", PROMPT);
        pty.send("\x04");
        assert_eq!(pty.wait().code(), Some(7), "{runtime:?}");
    }
    host.assert_clean();
}

/// Asks for the size until it is the expected one: a new one is on its way.
fn await_size(pty: &mut Pty, expected: &str) {
    for _ in 0..100 {
        if pty.run("stty size", PROMPT) == format!("{expected}\n") {
            return;
        }
    }
    panic!("the size never becomes {expected}");
}

#[test]
fn a_terminal_has_the_windows_size_and_follows_it() {
    let host = Host::take();
    for runtime in BOTH {
        let mut pty = shell(runtime);
        await_size(&mut pty, "24 80");
        pty.resize(40, 100);
        await_size(&mut pty, "40 100");
        pty.send("exit\r");
        assert!(pty.wait().success(), "{runtime:?}");
    }
    host.assert_clean();
}

#[test]
fn full_screen_programs_work() {
    let host = Host::take();
    for runtime in BOTH {
        let mut pty = shell(runtime);
        pty.send("vi /file\r");
        pty.wait_for("- /file");
        pty.send("i");
        pty.wait_for("I /file");
        pty.send("hello from vi");
        pty.wait_for("hello from vi");
        // What comes at once after Escape would be part of a key's code: a person looks first.
        pty.send("\x1b");
        pty.wait_for("- /file");
        pty.send(":wq\r");
        pty.wait_for(PROMPT);
        let shown = pty.run("cat /file", PROMPT);
        assert!(shown.ends_with("hello from vi\n"), "{shown:?}");
        pty.send("top\r");
        pty.wait_for("PID");
        pty.wait_for("top");
        pty.wait_for("PID");
        pty.send("q");
        pty.wait_for(PROMPT);
        pty.send("exit\r");
        assert!(pty.wait().success(), "{runtime:?}");
    }
    host.assert_clean();
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    let host = Host::take();
    for runtime in BOTH {
        let idle = Idle::start(runtime);
        let mut command = std::process::Command::new("ctr");
        command.args(["task", "exec", "--tty", "--exec-id", &fresh_id(), idle.id(), "sh"]);
        let mut pty = Pty::spawn(command, 30, 90);
        pty.wait_for(PROMPT);
        type_as_a_person(&mut pty);
        await_size(&mut pty, "30 90");
        pty.resize(50, 120);
        await_size(&mut pty, "50 120");
        pty.send("exit 9\r");
        assert_eq!(pty.wait().code(), Some(9), "{runtime:?}");
    }
    host.assert_clean();
}

#[test]
fn what_a_terminal_shows_is_what_the_program_wrote() {
    let host = Host::take();
    for runtime in BOTH {
        let script = "seq 1 20000; echo end";
        let run = Run::busybox(runtime, &["sh", "-c", script]).flag(&["--rm", "--tty"]);
        let mut pty = Pty::spawn(run.to_command(), 24, 80);
        let shown = pty.wait_for("end\r").replace('\r', "");
        let expected: String = (1..=20000).map(|number| format!("{number}\n")).collect();
        assert!(shown.ends_with(&expected), "{runtime:?}: {} bytes", shown.len());
        assert!(pty.wait().success());
    }
    host.assert_clean();
}
