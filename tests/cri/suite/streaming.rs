//! Streams to processes: what `kubectl exec`, `attach` and `port-forward` use.

use sealock_cri_tests::{
    Channel, Container, Cri, Pod, Stream,
    v1::{AttachRequest, ExecRequest},
};

fn exec(container: &Container, command: &[&str], tty: bool) -> Stream {
    let answer = Cri::get().exec(ExecRequest {
        container_id: container.id.clone(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    });
    Stream::connect(&answer.unwrap().url)
}

fn attach(container: &Container, tty: bool) -> Stream {
    let answer = Cri::get().attach(AttachRequest {
        container_id: container.id.clone(),
        stdin: container.config.stdin,
        tty,
        stdout: true,
        stderr: !tty,
    });
    Stream::connect(&answer.unwrap().url)
}

/// The connection's last word, a Kubernetes `Status`.
fn verdict(stream: &mut Stream) -> serde_json::Value {
    stream.finish();
    serde_json::from_slice(stream.received(Channel::Error)).unwrap_or_else(|_| panic!("{:?}", stream.story()))
}

#[test]
fn a_commands_streams_are_kept_apart_and_its_end_is_told() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let mut stream = exec(
        &container,
        &["sh", "-c", "read line; echo \"<$line>\"; echo err >&2"],
        false,
    );
    stream.send(Channel::Stdin, b"hello\n");
    let verdict = verdict(&mut stream);
    assert_eq!(stream.received(Channel::Stdout), b"<hello>\n");
    assert_eq!(stream.received(Channel::Stderr), b"err\n");
    assert_eq!(verdict["status"], "Success");
}

#[test]
fn a_commands_exit_code_is_told() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let mut stream = exec(&container, &["sh", "-c", "exit 42"], false);
    let verdict = verdict(&mut stream);
    assert_eq!(verdict["reason"], "NonZeroExitCode", "{verdict}");
    assert_eq!(verdict["details"]["causes"][0]["message"], "42", "{verdict}");
}

#[test]
fn much_input_comes_back() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let mut stream = exec(&container, &["head", "-c", "1048576"], false);
    let block: Vec<u8> = (0..=255).cycle().take(16384).collect();
    for _ in 0..64 {
        stream.send(Channel::Stdin, &block);
    }
    stream.finish();
    assert!(stream.received(Channel::Stdout) == block.repeat(64));
}

#[test]
fn a_command_on_a_terminal_has_one_and_hears_of_its_size() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let mut stream = exec(&container, &["sh"], true);
    stream.resize(111, 33);
    stream.send(Channel::Stdin, b"tty; echo done-$((1 + 1))\n");
    stream.until(Channel::Stdout, "done-2");
    stream.until(Channel::Stdout, "/dev/pts/");
    // The size arrives on its own way.
    stream.send(
        Channel::Stdin,
        b"until stty size | grep '33 111'; do sleep 0.1; done; echo sized-$((1 + 1))\n",
    );
    stream.until(Channel::Stdout, "sized-2");
    stream.resize(90, 20);
    stream.send(
        Channel::Stdin,
        b"until stty size | grep '20 90'; do sleep 0.1; done; echo again-$((1 + 1))\n",
    );
    stream.until(Channel::Stdout, "again-2");
    stream.send(Channel::Stdin, b"exit 3\n");
    let verdict = verdict(&mut stream);
    assert_eq!(verdict["details"]["causes"][0]["message"], "3", "{verdict}");
}

#[test]
fn control_c_interrupts_a_command_on_a_terminal() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let mut stream = exec(&container, &["sh"], true);
    stream.send(Channel::Stdin, b"echo up-$((1 + 1)); sleep 500\n");
    stream.until(Channel::Stdout, "up-2");
    stream.send(Channel::Stdin, b"\x03");
    stream.send(Channel::Stdin, b"echo back-$((1 + 1))\n");
    stream.until(Channel::Stdout, "back-2");
    stream.send(Channel::Stdin, b"\x04");
    stream.finish();
}

#[test]
fn a_containers_output_can_be_watched() {
    let pod = Pod::run();
    let container = pod
        .sh("i=0; while :; do i=$((i + 1)); echo line $i; echo err $i >&2; sleep 0.2; done")
        .start();
    let mut stream = attach(&container, false);
    let mut other = attach(&container, false);
    stream.until(Channel::Stdout, "line");
    stream.until(Channel::Stderr, "err");
    other.until(Channel::Stdout, "line");
    container.stop(0).unwrap();
    stream.finish();
}

#[test]
fn a_container_can_be_given_input() {
    let pod = Pod::run();
    let container = pod
        .sh("while read line; do echo \"got $line\"; done")
        .with(|config| config.stdin = true)
        .start();
    let mut stream = attach(&container, false);
    stream.send(Channel::Stdin, b"one\n");
    stream.until(Channel::Stdout, "got one");
    drop(stream);
    // Its input stays open when a client goes, and the next is heard as well.
    let mut stream = attach(&container, false);
    stream.send(Channel::Stdin, b"two\n");
    stream.until(Channel::Stdout, "got two");
    assert_eq!(container.log(), "got one\ngot two\n");
}

#[test]
fn input_that_is_given_once_ends_with_its_client() {
    let pod = Pod::run();
    let container = pod
        .sh("cat; echo end of input")
        .with(|config| {
            config.stdin = true;
            config.stdin_once = true;
        })
        .start();
    let mut stream = attach(&container, false);
    stream.send(Channel::Stdin, b"all\n");
    stream.until(Channel::Stdout, "all");
    drop(stream);
    assert_eq!(container.wait().exit_code, 0);
    assert_eq!(container.log(), "all\nend of input\n");
}

#[test]
fn a_shell_on_a_terminal_can_be_used() {
    let pod = Pod::run();
    let container = pod
        .container(&["sh"])
        .with(|config| {
            config.stdin = true;
            config.tty = true;
        })
        .start();
    let mut stream = attach(&container, true);
    stream.send(Channel::Stdin, b"echo here-$((1 + 1))\n");
    stream.until(Channel::Stdout, "here-2");
    stream.send(Channel::Stdin, b"exit 4\n");
    stream.finish();
    assert_eq!(container.wait().exit_code, 4);
}
