//! Tells containerd what happens to tasks: in order, one after the other, and what happens while containerd is being
//! restarted when it is back.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::{
    protobuf::{MessageFull, well_known_types::any::Any},
    shim::{event::Envelope, events::ForwardRequest},
    shim_async::{Client, EventsClient},
    ttrpc::{self, context},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use crate::status;

/// The most events that wait for containerd.
const QUEUE: usize = 2048;

/// How often an event that containerd refuses is offered before it is given up.
const ATTEMPTS: u32 = 3;

/// How long to wait before containerd is looked for again.
const PAUSES: [Duration; 4] = [
    // Perhaps it was only the connection.
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
];

/// How long containerd may take for one.
const DEADLINE: Duration = Duration::from_secs(5);

/// Where events are handed in.
#[derive(Debug)]
pub struct Events {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

#[derive(Debug)]
enum Item {
    Event(Box<Envelope>),
    /// To be answered when everything before it is delivered.
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Delivers to containerd's ttrpc socket `address` from now on. To be called within a runtime.
    #[must_use]
    pub fn start(address: &str, namespace: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let address = match address.split_once("://") {
            None if address.is_empty() => String::new(),
            None => format!("unix://{address}"),
            Some(_) => address.to_owned(),
        };
        tokio::spawn(deliver(address, waiting));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Hands in an event.
    pub fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let mut any = Any::new();
        // containerd's names of types are without a host.
        any.type_url = M::descriptor().full_name().to_owned();
        any.value = event.write_to_bytes().unwrap_or_default();
        let mut envelope = Envelope::new();
        envelope.timestamp = status::timestamp(SystemTime::now());
        envelope.namespace.clone_from(&self.namespace);
        topic.clone_into(&mut envelope.topic);
        envelope.event = Some(any).into();
        if self.queue.try_send(Item::Event(Box::new(envelope))).is_err() {
            tracing::error!(topic, "too many events wait for containerd: one is dropped");
        }
    }

    /// Waits until everything handed in has been delivered, or given up.
    pub async fn flush(&self, deadline: Duration) {
        let (done, wait) = oneshot::channel();
        let flush = async {
            self.queue.send(Item::Flush(done)).await.ok()?;
            wait.await.ok()
        };
        if timeout(deadline, flush).await.is_err() {
            tracing::error!("containerd did not take the last events");
        }
    }
}

async fn deliver(address: String, mut waiting: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = waiting.recv().await {
        let envelope = match item {
            Item::Flush(done) => {
                // Whoever waited may have given up.
                let _ = done.send(());
                continue;
            }
            Item::Event(_) if address.is_empty() => continue,
            Item::Event(envelope) => *envelope,
        };
        let mut request = ForwardRequest::new();
        request.envelope = Some(envelope).into();
        let mut refusals = 0;
        for pause in PAUSES.iter().chain(std::iter::repeat(&PAUSES[PAUSES.len() - 1])) {
            let failure = match forward(&address, &mut client, &request).await {
                Ok(()) => break,
                Err(failure) => failure,
            };
            client = None;
            if let Failure::Refused(error) = &failure {
                refusals += 1;
                if refusals == ATTEMPTS {
                    tracing::error!(
                        topic = request.envelope.topic,
                        error,
                        "containerd does not take an event"
                    );
                    break;
                }
            } else if pause.is_zero() {
                tracing::warn!(topic = request.envelope.topic, %failure, "containerd is away: events wait");
            }
            sleep(*pause).await;
        }
    }
}

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// containerd isn't there, or went away.
    #[error("{0}")]
    Away(String),
    /// It said so, or took too long.
    #[error("{0}")]
    Refused(String),
}

async fn forward(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), Failure> {
    let client = match client {
        Some(client) => client,
        None => {
            let connected = Client::connect(address)
                .await
                .map_err(|error| Failure::Away(error.to_string()))?;
            client.insert(EventsClient::new(connected))
        }
    };
    let forwarded = client.forward(context::with_duration(DEADLINE), request).await;
    forwarded.map(drop).map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => Failure::Refused(status.message),
        error => Failure::Away(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use containerd_shim_protos::{
        events::task::{TaskExit, TaskStart},
        protobuf::well_known_types::empty::Empty,
        shim_async::{Events as EventsService, create_events},
        ttrpc::{
            self,
            r#async::{Server, TtrpcContext},
        },
    };

    use super::*;

    struct Containerd(Arc<Mutex<Vec<(String, String)>>>);

    #[async_trait::async_trait]
    impl EventsService for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap();
            let event = envelope.event.unwrap();
            self.0.lock().unwrap().push((envelope.topic, event.type_url));
            Ok(Empty::new())
        }
    }

    #[test]
    fn events_arrive_once_each_and_in_order_even_if_containerd_comes_late() {
        let top = tempfile::tempdir().unwrap();
        let socket = top.path().join("containerd.sock.ttrpc");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let events = Events::start(socket.to_str().unwrap(), "ns");
            events.publish("/tasks/start", &TaskStart::new());
            // The first attempt fails.
            tokio::task::yield_now().await;
            let mut server = Server::new()
                .bind(&format!("unix://{}", socket.display()))
                .unwrap()
                .register_service(create_events(Arc::new(Containerd(Arc::clone(&seen)))));
            server.start().await.unwrap();
            events.publish("/tasks/exit", &TaskExit::new());
            events.flush(Duration::from_secs(20)).await;
        });
        let seen = seen.lock().unwrap();
        let expected = [
            (
                "/tasks/start".to_owned(),
                "containerd.events.TaskStart".to_owned(),
            ),
            ("/tasks/exit".to_owned(), "containerd.events.TaskExit".to_owned()),
        ];
        assert_eq!(*seen, expected);
    }

    #[test]
    fn what_happens_while_containerd_is_being_restarted_arrives_when_it_is_back() {
        let top = tempfile::tempdir().unwrap();
        let socket = top.path().join("containerd.sock.ttrpc");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let serve = async || {
            let mut server = Server::new()
                .bind(&format!("unix://{}", socket.display()))
                .unwrap()
                .register_service(create_events(Arc::new(Containerd(Arc::clone(&seen)))));
            server.start().await.unwrap();
            server
        };
        runtime.block_on(async {
            let events = Events::start(socket.to_str().unwrap(), "ns");
            let mut server = serve().await;
            events.publish("1", &TaskStart::new());
            events.flush(Duration::from_secs(20)).await;
            server.shutdown().await.unwrap();
            drop(server);
            let _ = std::fs::remove_file(&socket);
            for topic in ["2", "3"] {
                events.publish(topic, &TaskExit::new());
            }
            // More attempts than an event gets that is refused.
            sleep(Duration::from_secs(2)).await;
            let _server = serve().await;
            events.publish("4", &TaskExit::new());
            events.flush(Duration::from_secs(20)).await;
        });
        let topics: Vec<_> = seen
            .lock()
            .unwrap()
            .iter()
            .map(|(topic, _)| topic.clone())
            .collect();
        assert_eq!(topics, ["1", "2", "3", "4"]);
    }
}
