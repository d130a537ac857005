//! Streams to a process or a port: WebSockets to containerd's streaming server, in Kubernetes' subprotocol
//! `v4.channel.k8s.io`: binary messages whose first byte is the channel's number.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use tungstenite::{Bytes, Message, WebSocket, client::IntoClientRequest, http::HeaderValue};

/// The longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(60);

/// A channel of a connection to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// To the process.
    Stdin = 0,
    /// From the process.
    Stdout = 1,
    /// From the process.
    Stderr = 2,
    /// How it ended, in JSON: a Kubernetes `Status`.
    Error = 3,
    /// Sizes of the terminal, in JSON.
    Resize = 4,
}

impl Channel {
    /// Of a connection to one port: its bytes, both ways, after the port's number in two bytes.
    pub const DATA: Self = Self::Stdin;
}

/// A connection.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    received: Vec<Vec<u8>>,
    closed: bool,
}

impl Stream {
    /// Connects to the address that containerd has answered with.
    ///
    /// # Panics
    /// There is nothing at it that speaks the protocol.
    #[must_use]
    pub fn connect(url: &str) -> Self {
        let authority = url.strip_prefix("http://").expect("the address is of HTTP");
        let host = authority.split('/').next().unwrap_or_default();
        let stream = TcpStream::connect(host).expect("the streaming server listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket can have a timeout");
        let mut request = url
            .replacen("http", "ws", 1)
            .into_client_request()
            .expect("the address is one");
        request.headers_mut().insert(
            "Sec-WebSocket-Protocol",
            HeaderValue::from_static("v4.channel.k8s.io"),
        );
        let (socket, _) = tungstenite::client(request, stream).expect("it speaks WebSocket");
        Self {
            socket,
            received: vec![Vec::new(); 5],
            closed: false,
        }
    }

    /// Sends to a channel.
    ///
    /// # Panics
    /// The connection is gone.
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) {
        let mut message = vec![channel as u8];
        message.extend_from_slice(bytes);
        self.socket
            .send(Message::Binary(Bytes::from(message)))
            .expect("the connection stands");
    }

    /// Sets the terminal's size, in characters.
    ///
    /// # Panics
    /// The connection is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = format!(r#"{{"Width":{columns},"Height":{rows}}}"#);
        self.send(Channel::Resize, size.as_bytes());
    }

    /// Everything that has come by a channel until now.
    #[must_use]
    pub fn received(&self, channel: Channel) -> &[u8] {
        &self.received[channel as usize]
    }

    /// Receives one more message; false after the last.
    ///
    /// # Panics
    /// None comes within a minute.
    pub fn receive(&mut self) -> bool {
        while !self.closed {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    if let Some((&channel, data)) = bytes.split_first() {
                        self.received
                            .get_mut(usize::from(channel))
                            .expect("there are five channels")
                            .extend_from_slice(data);
                    }
                    return true;
                }
                Ok(Message::Close(_))
                | Err(
                    tungstenite::Error::ConnectionClosed
                    | tungstenite::Error::AlreadyClosed
                    | tungstenite::Error::Protocol(_),
                ) => self.closed = true,
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    self.closed = true;
                }
                Err(error) => panic!("{error}; until then: {:?}", self.story()),
            }
        }
        false
    }

    /// Receives until a channel has this text.
    ///
    /// # Panics
    /// It does not come.
    pub fn until(&mut self, channel: Channel, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let received = String::from_utf8_lossy(self.received(channel));
            if received.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "no {text:?}: {:?}", self.story());
            assert!(self.receive(), "ended without {text:?}: {:?}", self.story());
        }
    }

    /// Receives until the other side ends it.
    ///
    /// # Panics
    /// It does not.
    pub fn finish(&mut self) {
        while self.receive() {}
    }

    /// What came, for messages to people.
    #[must_use]
    pub fn story(&self) -> Vec<String> {
        self.received
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }
}
