//! The built-in model: its generated tasks, their verifiers, its tokenizer and its weights.
//!
//! Everything here is data and plain functions; no server, no storage.

pub mod scenes;
pub mod tokenizer;
pub mod words;
