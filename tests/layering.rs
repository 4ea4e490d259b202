//! Who may import whom: walks every path that starts with `crate::` (or `lacuna::`), and the names of the crates that
//! a layer must not know, and fails with the lines that break a rule. The table is the architecture.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A layer (folder or file of `src`), the layers it may import, and the crates it must not name.
struct Layer {
    name: &'static str,
    may: &'static [&'static str],
    never: &'static [&'static str],
}

/// Names that every layer may use: plain data and names of metrics.
const COMMON: &[&str] = &["error", "telemetry"];

const LAYERS: &[Layer] = &[
    Layer { name: "models", may: &["text"], never: &["tokio", "axum", "sqlx"] },
    Layer { name: "text", may: &[], never: &["tokio", "axum", "sqlx"] },
    Layer { name: "net", may: &[], never: &["axum", "sqlx", "candle_core", "candle_nn"] },
    Layer { name: "hub", may: &["net"], never: &["axum", "sqlx"] },
    Layer { name: "adapters", may: &["models"], never: &["axum", "sqlx"] },
    Layer { name: "diffusion", may: &["models", "adapters"], never: &["tokio", "axum", "sqlx"] },
    Layer { name: "engine", may: &["diffusion", "models", "adapters", "text"], never: &["axum", "sqlx"] },
    Layer { name: "store", may: &[], never: &["axum", "candle_core", "candle_nn"] },
    Layer { name: "rl", may: &["models", "diffusion", "adapters", "store", "engine", "net"], never: &["axum"] },
    Layer {
        name: "api",
        may: &["engine", "store", "rl", "adapters"],
        never: &["candle_core", "candle_nn", "sqlx", "tokenizers"],
    },
    Layer { name: "starter", may: &["diffusion", "models", "text", "rl"], never: &["axum", "sqlx", "tokio"] },
    Layer { name: "config", may: &["rl"], never: &["axum", "sqlx", "candle_core", "candle_nn", "tokio"] },
    Layer { name: "telemetry", may: &["config"], never: &["axum", "sqlx", "candle_core", "candle_nn"] },
];

/// These wire everything together.
const TOP: &[&str] = &["cli", "main", "lib"];

#[test]
fn every_import_follows_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for file in rust_files(&root) {
        let inside = file.strip_prefix(&root).unwrap();
        let name = layer_of(inside);
        if TOP.contains(&name.as_str()) || is_test(&file) {
            continue;
        }
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
            broken.push(format!("src/{}: `{name}` is not in the table of tests/layering.rs", inside.display()));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        broken.extend(breaches(layer, &text).into_iter().map(|line| format!("src/{}:{line}", inside.display())));
    }
    assert!(broken.is_empty(), "imports against the layering:\n{}", broken.join("\n"));
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files.sort();
    files
}

/// Files that only tests consist of, by this tree's names for them.
fn is_test(file: &Path) -> bool {
    let stem = file.file_stem().unwrap().to_str().unwrap();
    stem == "tests" || stem.ends_with("_tests")
}

/// The first component without `.rs`: `engine/job.rs` is of `engine`, `config.rs` of `config`.
fn layer_of(inside: &Path) -> String {
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Breaches of `layer` in its `text`, each as `line number: line: what is wrong`. Tests inside a file may import what
/// they like from `tests` on: they are the last item of a file.
fn breaches(layer: &Layer, text: &str) -> Vec<String> {
    let code: String = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for (start, line) in statements(&code) {
        for target in imported_layers(&line) {
            if target != layer.name && !layer.may.contains(&target.as_str()) && !COMMON.contains(&target.as_str()) {
                found.push(format!("{start}: {}: {} may not import {target}", line.trim(), layer.name));
            }
        }
        for crate_name in layer.never {
            if names_crate(&line, crate_name) {
                found.push(format!("{start}: {}: {} must not know {crate_name}", line.trim(), layer.name));
            }
        }
    }
    found
}

/// Code lines with their numbers; comments are left out, and a `use` with braces is one line.
fn statements(code: &str) -> Vec<(usize, String)> {
    let mut statements: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (i, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        match statements.last_mut().filter(|_| open) {
            Some((_, statement)) => statement.push_str(line.trim()),
            None => statements.push((i + 1, line.to_owned())),
        }
        let statement = &statements.last().unwrap().1;
        open = is_use(statement) && !statement.contains(';');
    }
    statements
}

fn is_use(statement: &str) -> bool {
    let statement = statement.trim_start();
    let visibility_end = if statement.starts_with("pub(") { statement.find(") ").map_or(0, |i| i + 2) } else { 0 };
    let statement = &statement[visibility_end..];
    statement.strip_prefix("pub ").unwrap_or(statement).starts_with("use ")
}

/// The first path component after each `crate::`, those of `crate::{a, b::c}` included.
fn imported_layers(line: &str) -> BTreeSet<String> {
    let mut layers = BTreeSet::new();
    let identifier = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => {
                layers.insert(identifier(rest));
            }
            Some(group) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            layers.insert(identifier(item.trim()));
                            item.clear();
                        }
                        c => item.push(c),
                    }
                }
                layers.insert(identifier(item.trim()));
            }
        }
    }
    layers.retain(|layer| !layer.is_empty());
    layers
}

/// `name::` as a path of its own: not `other_name::`, not `crate::name::`.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back().unwrap_or(' ');
        let own = !before.is_alphanumeric() && before != '_' && before != ':' && before != '"';
        own && line[at + name.len()..].starts_with("::")
    })
}

#[test]
fn the_walker_sees_what_it_should() {
    let layer = Layer { name: "api", may: &["engine"], never: &["sqlx"] };
    let broken = |text: &str| breaches(&layer, text);
    assert!(broken("use crate::engine::Engine;\nuse crate::api::error;\nuse crate::telemetry::metrics;\n").is_empty());
    assert!(broken("// use crate::models::Model;\n").is_empty());
    assert!(broken("fn f() {}\n#[cfg(test)]\nmod tests { use crate::models::Model; }\n").is_empty());
    assert_eq!(broken("\nuse crate::models::Model;").len(), 1);
    assert!(broken("\nuse crate::models::Model;")[0].starts_with("2: use crate::models::Model;"));
    assert_eq!(broken("use crate::{engine::{Engine, job}, models::Model, diffusion};").len(), 2);
    assert_eq!(broken("use crate::{\n    engine::Engine,\n    models::Model,\n};\n").len(), 1);
    assert_eq!(broken("fn f(m: crate::models::Model) {}").len(), 1);
    assert_eq!(broken("let pool = sqlx::SqlitePool::connect(url);").len(), 1);
    assert!(broken("let x = my_sqlx::connect(); let y = crate::engine::sqlx::z();").is_empty());
}
