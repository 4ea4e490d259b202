//! A server of the built-in model with a learner, and adapters to send to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use lacuna::adapters::peft::{self, PeftFiles};
use lacuna::adapters::{self, Base};
use lacuna::api::AppState;
use lacuna::engine::Engine;
use lacuna::models::Model;
use lacuna::models::lora::{Lora, Pair, Target};
use lacuna::rl::publish::Publisher;
use lacuna::rl::reward::Rewards;
use lacuna::rl::reward::combine::{Aggregate, Policy};
use lacuna::rl::trainer::{Parts, Promotion, Trainer, TrainingConfig};
use lacuna::starter;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::server::Server;

/// A field of a form: its name and content.
pub(super) type Field<'a> = (&'a str, &'a [u8]);

impl Server {
    /// The built-in model with a learner that starts no run by itself.
    pub(super) async fn learning() -> Self {
        Self::learning_with(|_| {}).await
    }

    pub(super) async fn learning_with(change: impl FnOnce(&mut AppState)) -> Self {
        Self::learning_of(starter::model::load(&Device::Cpu).unwrap(), change).await
    }

    /// The same with another model.
    pub(crate) async fn learning_of(model: Model, change: impl FnOnce(&mut AppState)) -> Self {
        Self::of(model, Arc::default(), 64, async |state, data| {
            state.trainer = Some(trainer(state, data).await);
            state.learning = Some(Promotion::Approve);
            change(state);
        })
        .await
    }

    /// Sends an adapter.
    pub(crate) async fn import(&self, name: &str, files: &PeftFiles) -> Response {
        let fields: [Field; 3] = [
            ("name", name.as_bytes()),
            ("adapter_config.json", &files.config),
            ("adapter_model.safetensors", &files.model),
        ];
        self.upload(&fields).await
    }

    /// Sends a form.
    pub(super) async fn upload(&self, fields: &[Field<'_>]) -> Response {
        let request = self.request(Method::POST, "/adapters");
        request.header("content-type", "multipart/form-data; boundary=cut").body(form(fields)).send().await.unwrap()
    }

    /// A reply of the built-in model, with the version in its header.
    pub(super) async fn answer(&self, adapter: Option<&str>) -> (String, Value) {
        let mut body = json!({
            "prompt": "Tom has 3 apples. He buys 4 more. How many apples does he have now?",
            "max_tokens": 16, "steps": 4, "stop_at_eos": false, "return": ["token_ids"],
        });
        if let Some(adapter) = adapter {
            body["adapter"] = json!(adapter);
        }
        let response = self.post("/generate/text", &body).await;
        assert_eq!(response.status(), 200);
        let version = response.headers()["x-adapter-version"].to_str().unwrap().to_owned();
        let reply: Value = response.json().await.unwrap();
        assert_eq!(reply["adapter"], version);
        (version, reply["completions"][0].clone())
    }
}

/// The fields as a multipart body.
pub(super) fn form(fields: &[Field<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in fields {
        body.extend(format!("--cut\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n").bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--cut--\r\n");
    body
}

/// The base that adapters of the model fit.
pub(crate) fn base(engine: &Engine) -> Base {
    let spec = engine.spec();
    Base {
        model: spec.name.clone(),
        sha256: spec.sha256.clone(),
        config: engine.model().backbone.adaptable().unwrap().clone(),
        device: Device::Cpu,
    }
}

/// An adapter of `base` that changes what is said.
pub(super) fn adapter(base: &Base, value: f32) -> PeftFiles {
    let mut pairs = BTreeMap::new();
    for (layer, target) in (0..base.config.n_layers).flat_map(|layer| Target::ALL.map(|target| (layer, target))) {
        let (out, width) = target.shape(&base.config);
        let wave = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin() * value).collect::<Vec<_>>();
        let a = Tensor::from_vec(wave(2 * width, 0.7), (2, width), &Device::Cpu).unwrap();
        let b = Tensor::from_vec(wave(out * 2, 1.3), (out, 2), &Device::Cpu).unwrap();
        pairs.insert((layer, target), Pair { a, b });
    }
    peft::write(&Lora::new(&base.config, 1.0, pairs).unwrap(), base).unwrap()
}

async fn trainer(state: &AppState, data: &Path) -> Trainer {
    let files = adapters::Registry::open(&data.join("adapters"), base(&state.engine), adapters::Limits::default());
    let publisher = Publisher::open(state.engine.clone(), Arc::clone(&state.store), Arc::new(files.unwrap())).await;
    let none = || {
        let aggregate = Aggregate::default();
        let policy =
            Policy { aggregate, user_weight_cap: 0.5, allow_user_only: true, min_scored_fraction: 0.8, parts: vec![] };
        Rewards::new(vec![], policy)
    };
    let parts = Parts {
        engine: state.engine.clone(),
        store: Arc::clone(&state.store),
        publisher: Arc::new(publisher.unwrap()),
        rewards: none(),
        guards: none(),
        config: TrainingConfig::default(),
        data_dir: data.to_owned(),
        holder: "test".to_owned(),
    };
    // Ends with the runtime of the test.
    Trainer::start(parts, CancellationToken::new()).unwrap().0
}
