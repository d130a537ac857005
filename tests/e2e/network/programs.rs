//! Servers and clients that people run, each way.

use std::{
    fs,
    process::{Command, Stdio},
};

use sealock_tests::{
    cni,
    ctr::{Run, Runtime, ctr},
};

use super::{Namespace, Server, on_bridge};
use crate::{Host, story, text};

/// The lab's own root as that of containers, writable for each: what is installed there is installed in them.
struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for part in ["upper", "work", "root"] {
            fs::create_dir(directory.path().join(part)).unwrap();
        }
        let root = Self { directory };
        let at = root.directory.path().display();
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(format!("lowerdir=/,upperdir={at}/upper,workdir={at}/work"))
            .arg(format!("{at}/root"))
            .status()
            .unwrap();
        assert!(status.success());
        root
    }

    fn path(&self) -> String {
        self.directory.path().join("root").display().to_string()
    }

    fn write(&self, path: &str, content: &str) {
        fs::write(format!("{}/{path}", self.path()), content).unwrap();
    }

    fn run(&self, namespace: &Namespace, script: &str) -> Run {
        Run::rootfs(Runtime::Sealock, &self.path(), &["/bin/sh", "-c", script]).flag(&[
            "--with-ns",
            &namespace.flag(),
            "--env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ])
    }

    /// Starts a server; it is ready when `asked` succeeds in its pod.
    fn serve(&self, namespace: &Namespace, script: &str, asked: &str) -> (Run, Server) {
        let run = self.run(namespace, script);
        let server = Server(
            run.clone()
                .flag(&["--rm"])
                .to_command()
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        // As a Kubernetes probe would ask.
        let script = format!("until {asked}; do sleep 1; done");
        let mut last = None;
        for attempt in 0..120 {
            let output = ctr(&[
                "task",
                "exec",
                "--exec-id",
                &format!("ask{attempt}"),
                run.id(),
                "/bin/sh",
                "-c",
                &script,
            ]);
            if output.status.success() {
                return (run, server);
            }
            last = Some(output);
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        panic!("it never was ready: {}", story(&last.unwrap()));
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn nginx_serves_the_host_and_other_pods() {
    let host = Host::take();
    let root = Root::new();
    let page = "a line of the page\n".repeat(20_000);
    root.write("var/www/html/page.txt", &page);
    let mut one = Namespace::new("one");
    let address = one.add(&[cni::bridge(1500)], "eth0").remove(0);
    let (run, server) = root.serve(
        &one,
        "exec nginx -g 'daemon off;'",
        "curl -fsS -o /dev/null http://127.0.0.1/page.txt",
    );

    let got = Command::new("curl")
        .args(["-fsS", &format!("http://{address}/page.txt")])
        .output()
        .unwrap();
    assert!(
        text(&got.stdout) == page,
        "{} bytes, {}",
        got.stdout.len(),
        text(&got.stderr)
    );
    let load = Command::new("wrk")
        .args([
            "-t1",
            "-c16",
            "-d5s",
            "--timeout",
            "60s",
            &format!("http://{address}/page.txt"),
        ])
        .output()
        .unwrap();
    let said = text(&load.stdout);
    assert!(
        said.contains("requests in") && !said.contains("Socket errors") && !said.contains("Non-2xx"),
        "{}",
        story(&load)
    );

    let two = on_bridge("two", 1500);
    let output = root
        .run(
            &two,
            &format!(
                "curl -fsS http://{address}/page.txt | md5sum; wrk -t1 -c4 -d3s --timeout 60s http://{address}/page.txt"
            ),
        )
        .output();
    let said = text(&output.stdout);
    let sum = Command::new("md5sum")
        .arg(format!("{}/var/www/html/page.txt", root.path()))
        .output()
        .unwrap();
    let sum = text(&sum.stdout);
    assert!(
        said.contains(sum.split(' ').next().unwrap())
            && said.contains("requests in")
            && !said.contains("Socket errors"),
        "{}",
        story(&output)
    );
    server.end(&run);
    drop((one, two, root));
    host.assert_clean();
}

#[test]
fn postgresql_serves_pgbench_from_another_pod() {
    let host = Host::take();
    let root = Root::new();
    root.write("etc/hba", "host all all all trust\nlocal all all trust\n");
    let mut one = Namespace::new("one");
    let address = one.add(&[cni::bridge(1500)], "eth0").remove(0);
    let server = "cd /; exec setpriv --reuid=postgres --regid=postgres --init-groups $(echo /usr/lib/postgresql/*/bin/postgres) \
        -D $(echo /var/lib/postgresql/*/main) -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf) \
        -c listen_addresses='*' -c hba_file=/etc/hba -c ssl=off -c unix_socket_directories=/tmp -c fsync=off";
    let (run, server) = root.serve(
        &one,
        server,
        "setpriv --reuid=postgres psql -h /tmp -c 'select 1'",
    );
    let two = on_bridge("two", 1500);
    let bench = format!(
        "export PGHOST={address} PGUSER=postgres; pgbench -i -q -s 1 postgres && pgbench -c 4 -t 25 postgres &&
         psql -At -c 'select sum(abalance) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_history) from pgbench_accounts' postgres"
    );
    let output = root.run(&two, &bench).output();
    let said = text(&output.stdout);
    assert!(
        said.contains("number of transactions actually processed: 100/100") && said.ends_with("t|100\n"),
        "{}",
        story(&output)
    );
    server.end(&run);
    drop((one, two, root));
    host.assert_clean();
}
