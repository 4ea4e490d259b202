//! Models by name, from a hub served here on loopback: its API and small files on one port, large files on another,
//! to which it redirects as the real one does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{StreamExt as _, stream};
use lacuna::hub::{HubError, Options, Token, resolve};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;

const MAIN: &str = "1111111111111111111111111111111111111111";
const OLDER: &str = "2222222222222222222222222222222222222222";
const TOKEN: &str = "hf_very_secret";

/// A request as a server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    range: Option<String>,
    token: bool,
}

/// What both servers share.
#[derive(Default)]
struct World {
    /// Files by name, whatever the revision; `config.json` starts with its commit.
    files: BTreeMap<&'static str, Vec<u8>>,
    seen_by_hub: Mutex<Vec<Seen>>,
    seen_by_cdn: Mutex<Vec<Seen>>,
    /// Large files still to be cut in the middle.
    cuts: AtomicUsize,
    /// Who may look: everyone, or those with a token, or nobody.
    status: Option<StatusCode>,
    cdn: Mutex<String>,
    /// The CDN's bytes are wrong.
    corrupt: bool,
}

impl World {
    fn content(&self, commit: &str, name: &str) -> Option<Vec<u8>> {
        let file = self.files.get(name)?;
        Some(if name == "config.json" { [commit.as_bytes(), file].concat() } else { file.clone() })
    }
}

struct Hub {
    world: Arc<World>,
    options: Options,
    _cache: TempDir,
}

impl Hub {
    async fn start(world: World) -> Self {
        let world = Arc::new(world);
        let api = Router::new()
            .route("/api/models/{org}/{name}/revision/{revision}", get(info))
            .route("/{org}/{name}/resolve/{commit}/{file}", get(file))
            .with_state(Arc::clone(&world));
        let cdn = Router::new().route("/large/{file}", get(large)).with_state(Arc::clone(&world));
        *world.cdn.lock().unwrap() = serve(cdn).await;
        let cache = tempfile::tempdir().unwrap();
        let mut options = Options::from_vars(|name| (name == "HF_TOKEN").then(|| TOKEN.to_owned()));
        options.endpoint = serve(api).await;
        options.cache = cache.path().to_owned();
        (options.retries, options.pause) = (0, Duration::from_millis(1));
        Self { world, options, _cache: cache }
    }

    async fn resolve(&self, model: &str) -> Result<PathBuf, HubError> {
        resolve_with(model, self.options.clone()).await
    }

    /// Paths that were asked for since the last call.
    fn seen(&self) -> (Vec<Seen>, Vec<Seen>) {
        let take = |seen: &Mutex<Vec<Seen>>| std::mem::take(&mut *seen.lock().unwrap());
        (take(&self.world.seen_by_hub), take(&self.world.seen_by_cdn))
    }
}

async fn resolve_with(model: &str, options: Options) -> Result<PathBuf, HubError> {
    let model = model.to_owned();
    tokio::task::spawn_blocking(move || resolve(&model, &options)).await.unwrap()
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn note(seen: &Mutex<Vec<Seen>>, path: String, headers: &HeaderMap) {
    let range = headers.get(RANGE).map(|value| value.to_str().unwrap().to_owned());
    seen.lock().unwrap().push(Seen { path, range, token: headers.contains_key(AUTHORIZATION) });
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

async fn info(
    State(world): State<Arc<World>>,
    UrlPath((org, name, revision)): UrlPath<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    note(&world.seen_by_hub, format!("{org}/{name}@{revision}"), &headers);
    if let Some(status) = world.status {
        return status.into_response();
    }
    let commit = match revision.as_str() {
        "main" | MAIN => MAIN,
        "v1" | OLDER => OLDER,
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let describe = |name: &&'static str| -> Value {
        let content = world.content(commit, name).unwrap();
        let hash: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        match is_large(name) {
            true => {
                json!({"rfilename": name, "size": content.len(), "blobId": "f".repeat(40), "lfs": {"sha256": hash}})
            }
            false => json!({"rfilename": name, "size": content.len(), "blobId": &hash[..40]}),
        }
    };
    let siblings: Vec<Value> = world.files.keys().map(describe).collect();
    axum::Json(json!({"id": format!("{org}/{name}"), "sha": commit, "siblings": siblings})).into_response()
}

async fn file(
    State(world): State<Arc<World>>,
    UrlPath((_, _, commit, name)): UrlPath<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    note(&world.seen_by_hub, name.clone(), &headers);
    if is_large(&name) {
        let location = format!("{}/large/{name}?signature=x", world.cdn.lock().unwrap());
        return (StatusCode::FOUND, [(LOCATION, location)]).into_response();
    }
    match world.content(&commit, &name) {
        Some(content) => content.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn large(State(world): State<Arc<World>>, UrlPath(name): UrlPath<String>, headers: HeaderMap) -> Response {
    note(&world.seen_by_cdn, name.clone(), &headers);
    let mut content = world.content(MAIN, &name).unwrap();
    if world.corrupt {
        content[0] ^= 1;
    }
    let start = headers.get(RANGE).map(|range| range.to_str().unwrap().to_owned());
    let from: usize =
        start.map_or(0, |range| range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap());
    let content = content.split_off(from);
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let length = [(CONTENT_LENGTH, content.len())];
    if world.cuts.fetch_update(SeqCst, SeqCst, |cuts| cuts.checked_sub(1)).is_ok() {
        let half = Bytes::copy_from_slice(&content[..content.len() / 2]);
        let cut = async {
            // What came before is sent while nothing more is ready.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        };
        let broken = stream::iter([Ok(half)]).chain(stream::once(cut));
        return (status, length, Body::from_stream(broken)).into_response();
    }
    (status, length, content).into_response()
}

/// A repository with one file of weights, and things that nobody needs.
fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("README.md", b"read me".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", (0..200_000u32).map(|i| (i % 251) as u8).collect()),
        ("modeling.py", b"print()".to_vec()),
        ("pytorch_model.bin", b"pickle".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
    ])
}

fn world() -> World {
    World { files: files(), ..World::default() }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_needed_is_downloaded_once_and_the_token_stays_with_the_hub() {
    let hub = Hub::start(world()).await;
    let folder = hub.resolve("org/model").await.unwrap();
    assert!(folder.ends_with(MAIN), "{}", folder.display());
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    for name in names(&folder) {
        assert_eq!(std::fs::read(folder.join(&name)).unwrap(), hub.world.content(MAIN, &name).unwrap(), "{name}");
    }
    let (by_hub, by_cdn) = hub.seen();
    let asked: Vec<&str> = by_hub.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(asked, ["org/model@main", "config.json", "tokenizer.json", "model.safetensors"]);
    assert!(by_hub.iter().all(|seen| seen.token), "{by_hub:?}");
    assert_eq!(by_cdn, [Seen { path: "model.safetensors".to_owned(), range: None, token: false }]);

    assert_eq!(hub.resolve("org/model").await.unwrap(), folder);
    let (by_hub, by_cdn) = hub.seen();
    assert_eq!(by_hub.len() + by_cdn.len(), 1, "only the list is asked for: {by_hub:?} {by_cdn:?}");
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_broke_off() {
    let ranges = |seen: Vec<Seen>| seen.into_iter().map(|seen| seen.range).collect::<Vec<_>>();
    // Within one call …
    let mut hub = Hub::start(World { cuts: AtomicUsize::new(1), ..world() }).await;
    hub.options.retries = 1;
    let folder = hub.resolve("org/model").await.unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    let (_, by_cdn) = hub.seen();
    assert_eq!(ranges(by_cdn), [None, Some("bytes=100000-".to_owned())]);
    // … and from one run of the program to the next.
    let hub = Hub::start(World { cuts: AtomicUsize::new(2), ..world() }).await;
    for _ in 0..2 {
        assert!(matches!(hub.resolve("org/model").await, Err(HubError::Connection { .. })));
    }
    let folder = hub.resolve("org/model").await.unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    let (_, by_cdn) = hub.seen();
    assert_eq!(ranges(by_cdn), [None, Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())]);
}

#[tokio::test]
async fn shards_come_with_their_index() {
    let mut files = files();
    let index = json!({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}});
    files.insert("model.safetensors.index.json", index.to_string().into_bytes());
    files.insert("m-1.safetensors", vec![1; 10]);
    files.insert("m-2.safetensors", vec![2; 20]);
    let hub = Hub::start(World { files, ..World::default() }).await;
    let folder = hub.resolve("org/model").await.unwrap();
    let expected =
        ["config.json", "m-1.safetensors", "m-2.safetensors", "model.safetensors.index.json", "tokenizer.json"];
    assert_eq!(names(&folder), expected);
}

#[tokio::test]
async fn revisions_live_side_by_side() {
    let hub = Hub::start(world()).await;
    let main = hub.resolve("org/model").await.unwrap();
    let older = hub.resolve("org/model@v1").await.unwrap();
    assert!(main.ends_with(MAIN) && older.ends_with(OLDER));
    assert!(std::fs::read_to_string(older.join("config.json")).unwrap().starts_with(OLDER));
    assert!(std::fs::read_to_string(main.join("config.json")).unwrap().starts_with(MAIN));
    let (_, by_cdn) = hub.seen();
    assert_eq!(by_cdn.len(), 1, "the weights are the same, so they are there already");
    assert_eq!(hub.resolve(&format!("org/model@{OLDER}")).await.unwrap(), older);
    let unknown = hub.resolve("org/model@nope").await.unwrap_err();
    assert!(
        matches!(unknown, HubError::NotFound { .. }) && unknown.to_string().contains("org/model@nope"),
        "{unknown}"
    );
}

#[tokio::test]
async fn the_cache_serves_offline_and_when_the_hub_is_away() {
    let mut hub = Hub::start(world()).await;
    hub.options.offline = true;
    let missing = hub.resolve("org/model").await.unwrap_err().to_string();
    assert!(missing.contains("config.json") && missing.contains("--offline"), "{missing}");
    assert_eq!(hub.seen(), (vec![], vec![]));
    hub.options.offline = false;
    let folder = hub.resolve("org/model").await.unwrap();
    hub.seen();
    hub.options.offline = true;
    assert_eq!(hub.resolve("org/model").await.unwrap(), folder);
    assert_eq!(hub.seen(), (vec![], vec![]));
    // A port that nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = Options { endpoint: format!("http://{closed}"), offline: false, ..hub.options.clone() };
    assert_eq!(resolve_with("org/model", away.clone()).await.unwrap(), folder);
    let nothing = resolve_with("org/other", away).await.unwrap_err();
    assert!(matches!(nothing, HubError::Connection { .. }), "{nothing}");
}

#[tokio::test]
async fn refusals_say_what_to_do_and_never_the_token() {
    for (status, token, advice) in [
        (StatusCode::UNAUTHORIZED, None, "set HF_TOKEN"),
        (StatusCode::UNAUTHORIZED, Some(TOKEN), "check HF_TOKEN"),
        (StatusCode::FORBIDDEN, None, "set HF_TOKEN"),
        (StatusCode::FORBIDDEN, Some(TOKEN), "accept the terms"),
        (StatusCode::NOT_FOUND, Some(TOKEN), "not found"),
        (StatusCode::BAD_GATEWAY, Some(TOKEN), "502"),
    ] {
        let mut hub = Hub::start(World { status: Some(status), ..world() }).await;
        hub.options.token = token.and_then(Token::new);
        let error = hub.resolve("org/model").await.unwrap_err();
        let message = format!("{error} {error:?}");
        assert!(message.contains(advice) && !message.contains(TOKEN), "{message}");
        assert_eq!(hub.seen().0[0].token, token.is_some());
    }
}

#[tokio::test]
async fn what_is_not_as_announced_is_thrown_away() {
    let hub = Hub::start(World { corrupt: true, ..world() }).await;
    for _ in 0..2 {
        let error = hub.resolve("org/model").await.unwrap_err();
        assert!(
            matches!(error, HubError::Corrupt { .. }) && error.to_string().contains("model.safetensors"),
            "{error}"
        );
    }
    let ranges: Vec<_> = hub.seen().1.into_iter().map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, None], "the second attempt begins at the beginning");
}
