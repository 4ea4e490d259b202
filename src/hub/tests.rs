//! Names, variables, the choice of files, and what the cache alone can answer.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::files::Info;
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn names_are_read_or_refused() {
    let read = |given: &str| Reference::parse(given).map(|r| (r.repo, r.revision));
    let pair = |repo: &str, revision: &str| (repo.to_owned(), revision.to_owned());
    assert_eq!(read("GSAI-ML/LLaDA-8B-Instruct").unwrap(), pair("GSAI-ML/LLaDA-8B-Instruct", "main"));
    assert_eq!(read("a/b.c@refs/pr/7").unwrap(), pair("a/b.c", "refs/pr/7"));
    for bad in ["", "starter", "a/", "/b", "a/b/c", "a/b@", "a/b@../x", "a/b@x//y", "../b", "a/..", "a/b?x", "a b/c"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_environment_is_honoured_and_the_token_is_not_shown() {
    let options = |vars: &[(&str, &str)]| {
        Options::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    };
    let home = tempfile::tempdir().unwrap();
    let at = home.path().to_str().unwrap();
    let plain = options(&[("HF_HOME", at)]);
    assert_eq!((plain.endpoint.as_str(), plain.offline), (ENDPOINT, false));
    assert_eq!((plain.cache, plain.token), (home.path().join("hub"), None));
    fs::write(home.path().join("token"), "hf_saved\n").unwrap();
    assert_eq!(options(&[("HF_HOME", at)]).token, Token::new("hf_saved"));
    let set = options(&[
        ("HF_HOME", at),
        ("HF_TOKEN", "hf_secret"),
        ("HF_ENDPOINT", "http://mirror:8080/"),
        ("HF_HUB_CACHE", "/elsewhere"),
        ("HF_HUB_OFFLINE", "1"),
    ]);
    assert_eq!(
        (set.endpoint.as_str(), set.offline, set.cache.as_path()),
        ("http://mirror:8080", true, Path::new("/elsewhere"))
    );
    assert_eq!(set.token, Token::new("hf_secret"));
    assert!(!format!("{set:?}").contains("secret"), "{set:?}");
}

fn info(names: &[&str]) -> Info {
    let file = |name: &&str| json!({"rfilename": name, "size": 3, "blobId": COMMIT});
    let siblings: Vec<Value> = names.iter().map(file).collect();
    serde_json::from_value(json!({"sha": COMMIT, "siblings": siblings})).unwrap()
}

#[test]
fn configuration_tokenizer_and_one_set_of_weights_are_taken() {
    let wanted = |names: &[&str]| -> Vec<String> {
        info(names).wanted("a/b").unwrap().into_iter().map(|file| file.name).collect()
    };
    assert_eq!(
        wanted(&[
            "README.md",
            "config.json",
            "merges.txt",
            "modeling.py",
            "model.safetensors",
            "x.bin",
            "o/vocab.json"
        ]),
        ["config.json", "merges.txt", "model.safetensors"]
    );
    assert_eq!(
        wanted(&["model-1.safetensors", "model.safetensors.index.json", "model.safetensors", "vocab.json"]),
        ["vocab.json", "model.safetensors.index.json"]
    );
    assert_eq!(wanted(&["config.json", "pytorch_model.safetensors"]), ["config.json", "pytorch_model.safetensors"]);
    let none = info(&["config.json", "pytorch_model.bin"]).wanted("a/b").unwrap_err().to_string();
    assert!(none.contains("a/b") && none.contains("pytorch_model.bin"), "{none}");
}

#[test]
fn shards_are_those_of_the_index_and_nothing_outside_the_folder() {
    let listed = info(&["m-1.safetensors", "m-2.safetensors", "m-3.safetensors"]);
    let shards = |map: Value| listed.shards(json!({"metadata": {}, "weight_map": map}).to_string().as_bytes());
    let names: Vec<String> = shards(json!({"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}))
        .unwrap()
        .into_iter()
        .map(|f| f.name)
        .collect();
    assert_eq!(names, ["m-1.safetensors", "m-2.safetensors"]);
    for bad in ["../../x.safetensors", "/x.safetensors", "m-4.safetensors", "m-1.bin", ".safetensors"] {
        assert!(shards(json!({"a": bad})).is_err(), "{bad}");
    }
    assert!(shards(json!({})).is_err());
}

#[test]
fn hashes_that_are_paths_are_refused() {
    let bad =
        json!({"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors", "size": 1, "blobId": "../../../etc"}]});
    assert!(serde_json::from_value::<Info>(bad).unwrap().wanted("a/b").is_err());
}

#[test]
fn offline_answers_from_the_cache_or_names_the_file() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = Options::from_vars(|_| None);
    (options.cache, options.offline) = (cache.path().to_owned(), true);
    let missing = |model: &str| resolve(model, &options).unwrap_err().to_string();
    assert!(missing("a/b").contains("config.json"), "{}", missing("a/b"));
    let folder = cache.path().join("models--a--b/snapshots").join(COMMIT);
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(cache.path().join("models--a--b/refs")).unwrap();
    fs::write(cache.path().join("models--a--b/refs/main"), COMMIT).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    assert!(missing("a/b").contains("model.safetensors"), "{}", missing("a/b"));
    fs::write(folder.join("model.safetensors.index.json"), r#"{"weight_map": {"x": "m-1.safetensors"}}"#).unwrap();
    assert!(missing("a/b").contains("m-1.safetensors"), "{}", missing("a/b"));
    fs::write(folder.join("m-1.safetensors"), "").unwrap();
    assert_eq!(resolve("a/b", &options).unwrap(), folder);
    assert_eq!(resolve(&format!("a/b@{COMMIT}"), &options).unwrap(), folder);
    assert!(missing("a/b@v2").contains("a/b@v2"), "{}", missing("a/b@v2"));
}
