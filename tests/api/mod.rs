//! The HTTP interface through a real listener, with a small deterministic model and the real log.

mod errors;
mod feedback;
mod image;
mod openapi;
mod operations;
mod pages;
mod server;
mod stopping;
mod text;
