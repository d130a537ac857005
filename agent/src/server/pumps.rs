//! What moves bytes between a program's ends of its streams and the host's.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    unistd::read,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, empty, join, sink},
    net::unix::pipe,
    sync::{Notify, oneshot, watch},
    task::{AbortHandle, JoinHandle},
    time::{sleep, timeout},
};

use super::{
    stdio::{GuestEnds, HostEnds},
    undelivered::{self, Undelivered},
};

/// What the pipe of a program that fills the usual one may hold: the program and the agent take turns less often.
const LARGE_PIPE: i32 = 1024 * 1024;

/// The most bytes handed to the kernel for the host at once. It puts them, with what it keeps about them, into one block of
/// memory: of 32 KiB there are always some, larger ones may be missing in a guest that has been up for long.
const PACKET: usize = 32 * 1024 - 1024;

/// Bytes moved at once: about as many as a pipe holds, and packets without a remainder.
const BUFFER: usize = 2 * PACKET;

/// How long the kernel is left alone when it has no memory for a packet.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(20);

/// The most that a program can have left in a stream when it ends: a pipe's or a terminal's capacity, generously.
const MAX_LEFT: usize = 2 * 1024 * 1024;

/// How long the host's standard input may be silent, once it is to be closed, before nothing more is taken to be on its way.
const STDIN_SILENCE: Duration = Duration::from_millis(500);

/// How long the host may take nothing of the output of a program that has ended before its end is told all the same. The
/// output still waits then, until the process is removed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The tasks that move the bytes of one process.
#[derive(Debug)]
pub struct Pumps {
    outputs: Vec<Output>,
    /// Ends with the host's stream.
    stdin: Option<AbortHandle>,
    /// Whether the program has ended.
    over: watch::Sender<bool>,
}

#[derive(Debug)]
struct Output {
    task: JoinHandle<()>,
    progress: Progress,
    /// Answers, once, when what the program had written by its end has been handed over.
    drained: Option<oneshot::Receiver<()>>,
}

/// Bytes that the host has taken.
#[derive(Clone, Debug, Default)]
struct Progress(Arc<AtomicU64>);

impl Progress {
    fn add(&self, bytes: usize) {
        // One thread: nothing is ordered by it.
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Pumps {
    /// Begins to move bytes. `close_stdin` ends the program's standard input, after what is on its way.
    pub fn start(
        guest: GuestEnds,
        host: HostEnds,
        close_stdin: Arc<Notify>,
        undelivered: &Undelivered,
    ) -> Self {
        let (over, ended) = watch::channel(false);
        let mut outputs = Vec::new();
        for (pipe, stream) in [(guest.stdout, host.stdout), (guest.stderr, host.stderr)] {
            if let Some(pipe) = pipe {
                outputs.push(match stream {
                    Some(stream) => Output::start(pipe, stream, ended.clone(), undelivered.begin()),
                    None => Output::start(pipe, join(empty(), sink()), ended.clone(), undelivered.begin()),
                });
            }
        }
        let stdin = guest
            .stdin
            .zip(host.stdin)
            .map(|(pipe, stream)| tokio::spawn(pump_stdin(stream, pipe, close_stdin)).abort_handle());
        Self { outputs, stdin, over }
    }

    /// Waits until everything that the program, which has ended, had written is handed over to the host, or the host takes
    /// nothing. Its input ends.
    pub async fn hand_over(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        self.over.send_replace(true);
        for output in &mut self.outputs {
            output.handed_over().await;
        }
    }

    /// Waits until no process can write to the streams any more, and all is handed over.
    pub async fn run_dry(&mut self) {
        for output in &mut self.outputs {
            // A panic ends the program, and nobody else cancels.
            let _ = (&mut output.task).await;
        }
        self.outputs.clear();
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        if let Some(stdin) = &self.stdin {
            stdin.abort();
        }
        for output in &self.outputs {
            output.task.abort();
        }
    }
}

impl Output {
    fn start<W>(
        pipe: pipe::Receiver,
        mut stream: W,
        ended: watch::Receiver<bool>,
        delivery: undelivered::Stream,
    ) -> Self
    where
        W: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let progress = Progress::default();
        let (done, drained) = oneshot::channel();
        let counted = progress.clone();
        let pump = async move {
            pump_output(pipe, &mut stream, ended, done, counted).await;
            // Whoever waits for the output waits no longer; the reader may still have to take it.
            tokio::spawn(delivery.delivered(stream));
        };
        Self {
            task: tokio::spawn(pump),
            progress,
            drained: Some(drained),
        }
    }

    async fn handed_over(&mut self) {
        while let Some(drained) = &mut self.drained {
            let before = self.progress.get();
            if timeout(PATIENCE, drained).await.is_ok() {
                self.drained = None;
            } else if self.progress.get() == before {
                return;
            }
        }
    }
}

/// Moves a program's output to the host until nobody has its end open any more; then the host's stream ends. When the program
/// has ended (`ended`) and what it had written by then is handed over, `drained` hears of it.
async fn pump_output<W>(
    mut pipe: pipe::Receiver,
    stream: &mut W,
    mut ended: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
    progress: Progress,
) where
    W: AsyncWrite + Unpin,
{
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut drained = Some(drained);
    // Once the program has ended, the most of its output that can still be in the pipe.
    let mut left = None;
    let mut heard = true;
    let mut enlarged = false;
    loop {
        buffer.clear();
        let read = match left {
            Some(_) if drained.is_some() => read_now(&pipe, &mut buffer),
            Some(_) => pipe.read_buf(&mut buffer).await.map(Some),
            None => tokio::select! {
                biased;
                read = pipe.read_buf(&mut buffer) => read.map(Some),
                _ = ended.wait_for(|ended| *ended) => {
                    left = Some(MAX_LEFT);
                    continue;
                }
            },
        };
        let read = match read {
            // A terminal whose program's side is closed answers with an error.
            Ok(Some(0)) | Err(_) => break,
            Ok(Some(read)) => read,
            Ok(None) => {
                drained.take();
                continue;
            }
        };
        if read == BUFFER && !enlarged {
            // Without it all goes on as before; a terminal has no such thing.
            let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(LARGE_PIPE));
            enlarged = true;
        }
        // A host that no longer listens is not the program's fault: it goes on, unheard.
        heard = heard && write_all(stream, &buffer, &progress).await.is_ok();
        if let Some(left) = &mut left {
            *left = left.saturating_sub(read);
            if *left == 0 {
                drained.take();
            }
        }
    }
    let _ = stream.shutdown().await;
}

/// Reads what is there; `None` when nothing is. Asks the kernel itself: the runtime may not know yet what it knows.
fn read_now(pipe: &pipe::Receiver, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    buffer.resize(BUFFER, 0);
    loop {
        return match read(pipe.as_fd(), buffer) {
            Ok(bytes) => {
                buffer.truncate(bytes);
                Ok(Some(bytes))
            }
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
}

async fn write_all<W>(stream: &mut W, mut bytes: &[u8], progress: &Progress) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while !bytes.is_empty() {
        let written = match stream.write(&bytes[..bytes.len().min(PACKET)]).await {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS)) => {
                sleep(NO_MEMORY_PAUSE).await;
                continue;
            }
            written => written?,
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        progress.add(written);
        bytes = &bytes[written..];
    }
    Ok(())
}

async fn pump_stdin<R, W>(mut stream: R, pipe: W, close: Arc<Notify>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut pipe = Some(pipe);
    let mut closing = false;
    loop {
        buffer.clear();
        let read = if closing {
            match timeout(STDIN_SILENCE, stream.read_buf(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => Ok(0),
            }
        } else {
            tokio::select! {
                biased;
                read = stream.read_buf(&mut buffer) => read,
                () = close.notified() => {
                    closing = true;
                    continue;
                }
            }
        };
        if end_of(read) {
            return;
        }
        // A container that closed its standard input misses nothing: what still comes is taken and forgotten, so that
        // the host is not kept waiting.
        if let Some(open) = &mut pipe
            && open.write_all(&buffer).await.is_err()
        {
            pipe = None;
        }
    }
}

fn end_of(read: io::Result<usize>) -> bool {
    matches!(read, Ok(0) | Err(_))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use tokio::io::duplex;

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    fn pump(
        pipe: OwnedFd,
        host: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> (Output, watch::Sender<bool>) {
        let (over, ended) = watch::channel(false);
        let pipe = pipe::Receiver::from_owned_fd(pipe).unwrap();
        (
            Output::start(pipe, host, ended, Undelivered::default().begin()),
            over,
        )
    }

    #[tokio::test]
    async fn output_reaches_the_host_whole_and_ends_with_its_last_writer() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1000);
        let (pump, _over) = pump(read, guest);
        let data: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
        let mut container = pipe::Sender::from_owned_fd(write).unwrap();
        let sent = data.clone();
        tokio::spawn(async move { container.write_all(&sent).await.unwrap() });
        let mut received = Vec::new();
        host.read_to_end(&mut received).await.unwrap();
        assert!(received == data);
        pump.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_container_whose_output_nobody_hears_goes_on() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (host, guest) = duplex(1000);
        drop(host);
        let (pump, _over) = pump(read, guest);
        let mut container = pipe::Sender::from_owned_fd(write).unwrap();
        container.write_all(&[0; 300_000]).await.unwrap();
        drop(container);
        pump.task.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_program_wrote_is_handed_over_although_others_keep_its_output_open() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1000);
        let (mut pump, over) = pump(read, guest);
        let mut program = pipe::Sender::from_owned_fd(write).unwrap();
        program.write_all(&[1; 20_000]).await.unwrap();
        over.send_replace(true);
        let reader = tokio::spawn(async move {
            let mut received = vec![0; 20_000];
            host.read_exact(&mut received).await.unwrap();
            host
        });
        pump.handed_over().await;
        pump.handed_over().await;
        assert_eq!(pump.progress.get(), 20_000);
        // And the stream goes on.
        program.write_all(b"later").await.unwrap();
        let mut later = [0; 5];
        reader.await.unwrap().read_exact(&mut later).await.unwrap();
        assert_eq!(&later, b"later");
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_told_although_nobody_reads_the_output_and_the_output_still_waits() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1000);
        let (mut pump, over) = pump(read, guest);
        let mut program = pipe::Sender::from_owned_fd(write).unwrap();
        program.write_all(&[1; 20_000]).await.unwrap();
        drop(program);
        over.send_replace(true);
        pump.handed_over().await;
        let mut received = Vec::new();
        host.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 20_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_waited_for() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1000);
        let (mut pump, over) = pump(read, guest);
        let mut program = pipe::Sender::from_owned_fd(write).unwrap();
        program.write_all(&[1; 20_000]).await.unwrap();
        over.send_replace(true);
        let reader = tokio::spawn(async move {
            let mut received = [0; 1000];
            for _ in 0..20 {
                tokio::time::sleep(PATIENCE / 2).await;
                host.read_exact(&mut received).await.unwrap();
            }
        });
        pump.handed_over().await;
        assert_eq!(pump.progress.get(), 20_000);
        reader.await.unwrap();
    }

    #[tokio::test]
    async fn closing_stdin_delivers_what_is_on_its_way_first() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1 << 20);
        host.write_all(&[7; 200_000]).await.unwrap();
        let close = Arc::new(Notify::new());
        close.notify_one();
        tokio::spawn(pump_stdin(
            guest,
            pipe::Sender::from_owned_fd(write).unwrap(),
            close,
        ));
        let mut received = Vec::new();
        pipe::Receiver::from_owned_fd(read)
            .unwrap()
            .read_to_end(&mut received)
            .await
            .unwrap();
        assert_eq!(received.len(), 200_000);
    }

    #[tokio::test]
    async fn stdin_ends_with_the_hosts_stream() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(100);
        let pump = tokio::spawn(pump_stdin(
            guest,
            pipe::Sender::from_owned_fd(write).unwrap(),
            Arc::new(Notify::new()),
        ));
        host.write_all(b"last").await.unwrap();
        drop(host);
        let mut received = Vec::new();
        pipe::Receiver::from_owned_fd(read)
            .unwrap()
            .read_to_end(&mut received)
            .await
            .unwrap();
        assert_eq!(received, b"last");
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn the_host_is_not_kept_waiting_by_a_container_that_closed_its_stdin() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(100);
        let pump = tokio::spawn(pump_stdin(
            guest,
            pipe::Sender::from_owned_fd(write).unwrap(),
            Arc::new(Notify::new()),
        ));
        drop(read);
        host.write_all(&[0; 500_000]).await.unwrap();
        drop(host);
        pump.await.unwrap();
    }
}
