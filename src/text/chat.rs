//! Chat templates: a conversation to the ids that come before the answer, rendered as transformers renders it.
//!
//! `transformers` runs a checkpoint's Jinja template with `trim_blocks` and `lstrip_blocks`, its own `tojson` and
//! `raise_exception`, and Python's string methods. A template comes with the weights, so what it may do is bounded.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use super::marked::Guard;
use super::{TextError, Tokenizer};

/// Instructions a template may run for one conversation. The official ones take some dozens per message.
const FUEL: u64 = 4_000_000;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A checkpoint's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token` and the like, as the tokenizer's configuration spells them.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads a template. `tokens` are the named special tokens that it may refer to, such as `bos_token`.
    ///
    /// # Errors
    /// [`TextError::Template`] when it is no template.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        let unreadable = |e: Error| TextError::Template(e.to_string());
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(unreadable)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.template_from_str(source).map_err(unreadable)?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// The conversation as text, ready for the assistant's answer. It is for reading: in it, nobody can tell a control
    /// token from its spelling.
    ///
    /// # Errors
    /// [`TextError::Conversation`] when the template refuses it.
    pub fn render(&self, messages: &[Message]) -> Result<String, TextError> {
        let message = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let tokens = self.tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let messages = messages.iter().map(message).collect::<Vec<_>>();
        let own = [("messages", Value::from(messages)), ("add_generation_prompt", Value::from(true))];
        let context = Value::from_pairs(tokens.chain(own));
        // A template's error may quote a message: only its kind is told.
        let refused = |e: Error| TextError::Conversation(e.kind().to_string());
        self.environment.template_from_str(&self.source).and_then(|t| t.render(context)).map_err(refused)
    }

    /// The ids before the answer. Control tokens come from the template alone: one that is spelled in a message is
    /// text.
    ///
    /// # Errors
    /// As [`render`](Self::render), and when a message cannot be encoded.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        let written = messages.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]);
        let guard = Guard::absent_from(written)?;
        let controls = tokenizer.controls();
        let guarded: Vec<Message> = messages
            .iter()
            .map(|m| Message { role: controls.guarded(&m.role, guard), content: controls.guarded(&m.content, guard) })
            .collect();
        controls.encode(tokenizer, &self.render(&guarded)?, Some(guard))
    }
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it.
fn to_json(value: &Value) -> Result<String, Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?;
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// A space after commas and colons.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
