//! A server on a free port, its client, and readers of what it answers.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eventsource_stream::Eventsource as _;
use futures_util::StreamExt as _;
use lacuna::api::{self, App, AppState};
use lacuna::engine::{Engine, Limits};
use lacuna::models::Model;
use lacuna::store::SqliteStore;
use metrics_exporter_prometheus::PrometheusHandle;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::properties::fake::{self, Gauge, Hash};

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) client: Client,
    /// Holds and counts the model's forwards.
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) app: App,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
    _data: TempDir,
}

/// An event of a stream: its name and data.
pub(crate) type Event = (String, Value);

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut AppState)) -> Self {
        Self::with_queue(64, change).await
    }

    pub(crate) async fn with_queue(max_queue: usize, change: impl FnOnce(&mut AppState)) -> Self {
        let backbone = Hash::new();
        let gauge = Arc::clone(&backbone.gauge);
        Self::of(fake::model(backbone), gauge, max_queue, async |state, _| change(state)).await
    }

    /// A server of this model with an empty log; `change` also gets the folder of its data.
    pub(crate) async fn of(
        model: Model,
        gauge: Arc<Gauge>,
        max_queue: usize,
        change: impl AsyncFnOnce(&mut AppState, &Path),
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let limits = Limits { max_queue, max_rows: 4096, max_running: 16, max_cache_bytes: 1 << 20 };
        let engine = Engine::start(model, limits).unwrap();
        let store = SqliteStore::open(data.path()).await.unwrap();
        let subjects = store.subject_key().clone();
        let mut state = AppState::new(engine, Arc::new(store), metrics(), subjects);
        change(&mut state, data.path()).await;
        let app = Arc::new(state);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let signal = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(api::serve(listener, Arc::clone(&app), signal));
        Self { address, client: Client::new(), gauge, app, stop: Some(stop), task, _data: data }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) -> u16 {
        self.request(Method::DELETE, path).send().await.unwrap().status().as_u16()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    /// The JSON of a request that succeeds.
    pub(crate) async fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{status}: {body}");
        body
    }

    /// A stored text completion.
    pub(crate) async fn completion(&self) -> String {
        let made =
            self.ok("/generate/text", &json!({"prompt": "a", "max_tokens": 4, "steps": 2, "block_length": 4})).await;
        made["completions"][0]["id"].as_str().unwrap().to_owned()
    }

    /// All events of a stream, to its end.
    pub(crate) async fn events(&self, path: &str, body: &Value) -> Vec<Event> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200);
        collect(response).await
    }

    /// Sends the signal to stop.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Waits until the server has ended.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(60), self.task).await.unwrap().unwrap().unwrap();
    }
}

/// All events of a streamed response, to its end.
pub(crate) async fn collect(response: Response) -> Vec<Event> {
    let mut events = response.bytes_stream().eventsource();
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.unwrap();
        all.push((event.event, serde_json::from_str(&event.data).unwrap()));
    }
    all
}

/// Waits until something holds; fails after a minute.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), wait).await.is_ok(), "never happened: {what}");
}

/// The recorder of this process: there can only be one.
pub(crate) fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| lacuna::telemetry::init_metrics().unwrap()).clone()
}
