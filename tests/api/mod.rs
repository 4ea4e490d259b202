//! The HTTP interface through a real listener, with a small deterministic model and the real log.

mod adapters;
mod errors;
mod feedback;
mod image;
pub(crate) mod learning;
mod openapi;
mod operations;
mod pages;
mod preferences;
pub(crate) mod server;
mod stopping;
mod text;
mod training;
