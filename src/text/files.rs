//! The text side of a checkpoint's folder: tokenizer, named special tokens, chat template.
//!
//! Reads `tokenizer.json`, or builds Qwen2's tokenizer from `vocab.json` and `merges.txt` where a repository has
//! nothing else (Dream, whose tokenizer is Python code).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{ChatTemplate, TextError, Tokenizer};

/// Largest file read whole; the largest official one is 12 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Where Qwen2's tokenizer cuts a text before its merges.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Tokenizer classes that cut so.
const QWEN2: [&str; 4] = ["DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"];

/// What a folder says about text.
#[derive(Debug)]
pub struct TextFiles {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Named special tokens, such as `bos_token`.
    pub tokens: BTreeMap<String, String>,
    /// The source of the chat template; base models have none.
    pub template: Option<String>,
}

impl TextFiles {
    /// Reads a folder.
    ///
    /// # Errors
    /// Names the file that is missing or cannot be read.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let config = optional(folder, "tokenizer_config.json")?
            .map_or(Ok(Map::new()), |bytes| object("tokenizer_config.json", &bytes))?;
        let tokenizer = match optional(folder, "tokenizer.json")? {
            Some(bytes) => Tokenizer::from_bytes(&bytes)?,
            None => qwen2(folder, &config)?,
        };
        let mut tokens = named_tokens(&config);
        if let Some(bytes) = optional(folder, "special_tokens_map.json")? {
            for (name, token) in named_tokens(&object("special_tokens_map.json", &bytes)?) {
                tokens.entry(name).or_insert(token);
            }
        }
        let template = match optional(folder, "chat_template.jinja")? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|e| TextError::Template(e.to_string()))?),
            None => template(&config)?,
        };
        Ok(Self { tokenizer, tokens, template })
    }

    /// The chat template, compiled.
    ///
    /// # Errors
    /// When it is no template.
    pub fn chat(&self) -> Result<Option<ChatTemplate>, TextError> {
        self.template.as_deref().map(|source| ChatTemplate::new(source, self.tokens.clone())).transpose()
    }
}

/// `bos_token`, `eos_token` and so on: a string each, or an object with `content`.
fn named_tokens(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    named
        .filter_map(|(name, value)| {
            let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.clone(), token.to_owned()))
        })
        .collect()
}

/// The template of a tokenizer's configuration: a string, or the one called `default` in a list.
fn template(config: &Map<String, Value>) -> Result<Option<String>, TextError> {
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            let source = default.and_then(|t| t.get("template")?.as_str());
            source.map(|s| Some(s.to_owned())).ok_or_else(|| {
                TextError::Template("tokenizer_config.json: chat_template is a list without `default`".into())
            })
        }
        Some(_) => Err(TextError::Template("tokenizer_config.json: chat_template is neither text nor a list".into())),
    }
}

/// Qwen2's byte-level BPE.
fn qwen2(folder: &Path, config: &Map<String, Value>) -> Result<Tokenizer, TextError> {
    let (Some(vocab), Some(merges)) = (optional(folder, "vocab.json")?, optional(folder, "merges.txt")?) else {
        return Err(TextError::Files("neither tokenizer.json nor vocab.json with merges.txt is there".into()));
    };
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("Qwen2Tokenizer");
    if !QWEN2.contains(&class) {
        return Err(TextError::Files(format!(
            "tokenizer_class {class} cannot be built from vocab.json and merges.txt; a tokenizer.json is needed"
        )));
    }
    let mut vocab = object("vocab.json", &vocab)?;
    let added = added_tokens(folder, config)?;
    // Part of the vocabulary, so that every token has the id that the file gives it.
    for token in &added {
        if let (Some(content), Some(id)) = (token["content"].as_str(), token.get("id")) {
            vocab.insert(content.to_owned(), id.clone());
        }
    }
    let merges = String::from_utf8(merges).map_err(|e| TextError::Files(format!("merges.txt: {e}")))?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": false},
            bytes(false),
        ]},
        "post_processor": null,
        "decoder": bytes(true),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Tokenizer::from_bytes(tokenizer.to_string().as_bytes())
}

/// Entries for `added_tokens`, by id: `tokenizer_config.json` has them with their properties, `added_tokens.json` only
/// their ids.
fn added_tokens(folder: &Path, config: &Map<String, Value>) -> Result<Vec<Value>, TextError> {
    let mut added: BTreeMap<u64, Value> = BTreeMap::new();
    for (content, id) in
        optional(folder, "added_tokens.json")?.map_or(Ok(Map::new()), |b| object("added_tokens.json", &b))?
    {
        let id = id.as_u64().ok_or_else(|| TextError::Files(format!("added_tokens.json: {content} has no id")))?;
        added.insert(id, json!({"content": content, "special": true}));
    }
    if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
        for (id, token) in decoder {
            let id = id.parse().map_err(|_| TextError::Files(format!("added_tokens_decoder: {id} is no id")))?;
            added.insert(id, token.clone());
        }
    }
    let entry = |(id, token): (u64, Value)| {
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        json!({
            "id": id, "content": token["content"], "single_word": flag("single_word"), "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
        })
    };
    Ok(added.into_iter().map(entry).collect())
}

/// The bytes of a file of the folder, if it is there.
fn optional(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, TextError> {
    let path = folder.join(name);
    let failed = |e: std::io::Error| TextError::Files(format!("{name}: {e}"));
    match fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
        Ok(found) if found.len() > MAX_BYTES => {
            Err(TextError::Files(format!("{name}: {} bytes; at most {MAX_BYTES} are read", found.len())))
        }
        Ok(_) => fs::read(&path).map(Some).map_err(failed),
    }
}

fn object(name: &str, bytes: &[u8]) -> Result<Map<String, Value>, TextError> {
    serde_json::from_slice(bytes).map_err(|e| TextError::Files(format!("{name}: {e}")))
}
