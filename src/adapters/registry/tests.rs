//! Versions come whole, stay as they are, and damage is seen. Crashes are enumerated: after every step of a commit.

use std::collections::BTreeSet;

use tempfile::TempDir;

use super::commit::{Step, steps};
use super::*;
use crate::adapters::peft::tests::{base, files, lora};

fn open(dir: &TempDir) -> Registry {
    Registry::open(dir.path(), base(), Limits::default()).unwrap()
}

fn id(text: &str) -> VersionId {
    text.parse().unwrap()
}

fn ids(registry: &Registry) -> Vec<String> {
    let listing = registry.list().unwrap();
    assert_eq!(listing.damaged, []);
    listing.versions.iter().map(|manifest| manifest.id.to_string()).collect()
}

/// The one folder of a version.
fn folder_of(registry: &Registry, text: &str) -> PathBuf {
    registry.root.join(registry.folder(&id(text)).unwrap().unwrap())
}

fn provenance() -> Provenance {
    Provenance {
        parent: Some(VersionId::base()),
        algorithm: "mask_grpo".into(),
        created_us: 7,
        ..Provenance::default()
    }
}

#[test]
fn versions_count_up_and_read_back() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    let first = registry.commit("taste", &lora(0.25), provenance()).unwrap();
    let second = registry.commit("taste", &lora(0.5), provenance()).unwrap();
    let other = registry.import("taste-v00000001", &files(), Provenance::default()).unwrap();
    assert_eq!([&first.id, &second.id, &other.id], [&id("taste@1"), &id("taste@2"), &id("taste-v00000001@1")]);

    let registry = open(&dir);
    assert_eq!(ids(&registry), ["taste@1", "taste@2", "taste-v00000001@1"]);
    let loaded = registry.load(&first.id).unwrap();
    assert_eq!(loaded.manifest, first.manifest);
    let manifest = loaded.manifest.unwrap();
    assert_eq!((manifest.rank, manifest.alpha, manifest.parameters), (2, 3.0, 2 * (8 + 8 + 12 + 8 + 8 + 4)));
    assert_eq!(manifest.targets, ["q_proj", "k_proj", "ff_out"]);
    assert_eq!(manifest.provenance, provenance());
    let value = |adapter: &Adapter| {
        adapter.lora.as_ref().unwrap().pairs().values().next().unwrap().a.to_vec2::<f32>().unwrap()[0][0]
    };
    assert_eq!((value(&first), value(&registry.load(&second.id).unwrap())), (0.25, 0.5));
    assert!(registry.files(&other.id).unwrap().1 == files(), "an import is kept byte for byte");

    assert!(registry.load(&VersionId::base()).unwrap().lora.is_none());
    let missing = registry.load(&id("taste@3")).unwrap_err();
    assert!(matches!(&missing, AdapterError::NotFound(found) if *found == id("taste@3")), "{missing}");
}

#[test]
fn what_is_refused_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    assert!(registry.commit("taste", &lora(f32::NAN), provenance()).is_err());
    assert!(registry.commit("taste", &lora(1e9), provenance()).is_err());
    for name in ["base", "", "../taste", "Taste", "a/b"] {
        assert!(registry.commit(name, &lora(0.1), provenance()).is_err(), "{name}");
    }
    let broken = PeftFiles { model: files().model[..100].to_vec(), ..files() };
    assert!(registry.import("taste", &broken, provenance()).is_err());
    assert_eq!(registry.folders().unwrap(), [LOCK]);
}

#[test]
fn numbers_are_never_used_twice() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    registry.commit("taste", &lora(0.1), provenance()).unwrap();
    registry.remove(&id("taste@1")).unwrap();
    assert!(matches!(registry.remove(&id("taste@1")), Err(AdapterError::NotFound(_))));
    assert_eq!(ids(&open(&dir)), [""; 0]);
    assert_eq!(open(&dir).commit("taste", &lora(0.1), provenance()).unwrap().id, id("taste@2"));
}

#[test]
fn concurrent_writers_get_numbers_of_their_own() {
    let dir = TempDir::new().unwrap();
    let write = |_| open(&dir).commit("taste", &lora(0.1), provenance()).unwrap().id.version();
    let versions: BTreeSet<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|i| scope.spawn(move || write(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(versions, (1..=4).collect());
    assert_eq!(ids(&open(&dir)).len(), 4);
}

/// Runs a commit until after step `stop`, as if the power failed there. What was written but not flushed is lost to
/// half of it.
fn crash(registry: &Registry, stop: usize) -> Option<Step> {
    let folder = |manifest: &Manifest| folder_name(manifest);
    let number = registry.next_number("taste").unwrap();
    let manifest = registry.describe(VersionId::new("taste", number).unwrap(), &lora(0.5), &files(), provenance());
    let (mut count, mut stopped) = (0, None);
    let result = steps(&registry.root, &folder(&manifest), &files(), &manifest, &mut |step| {
        if count == stop {
            stopped = Some(step);
            return Err(io::Error::other("the power failed"));
        }
        count += 1;
        Ok(())
    });
    assert_eq!(result.is_err(), stopped.is_some());
    if let Some(Step::Written(name)) = stopped {
        let path = registry.root.join(format!("{TEMPORARY}{}", folder(&manifest))).join(name);
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    stopped
}

#[test]
fn after_a_crash_there_is_the_whole_version_or_none() {
    let mut seen = Vec::new();
    for stop in 0.. {
        let dir = TempDir::new().unwrap();
        let registry = open(&dir);
        registry.commit("taste", &lora(0.25), provenance()).unwrap();
        let stopped = crash(&registry, stop);
        // Before the next opening, nothing unfinished is served either.
        let before = ids(&registry);
        let registry = open(&dir);
        assert_eq!(ids(&registry), before, "{stopped:?}");
        let whole = matches!(stopped, None | Some(Step::Renamed | Step::Done));
        let expected: &[&str] = if whole { &["taste@1", "taste@2"] } else { &["taste@1"] };
        assert_eq!(before, expected, "{stopped:?}");
        for version in &before {
            registry.load(&id(version)).unwrap();
        }
        assert!(!registry.folders().unwrap().iter().any(|folder| folder.starts_with(TEMPORARY)), "{stopped:?}");
        // The store goes on as if nothing had happened.
        let next = registry.commit("taste", &lora(0.75), provenance()).unwrap();
        assert_eq!(next.id.version(), before.len() as u64 + 1);
        match stopped {
            Some(step) => seen.push(step),
            None => break,
        }
    }
    assert_eq!(seen.len(), 10, "{seen:?}");
    assert_eq!((seen[0], seen[9]), (Step::Folder, Step::Done));
}

#[test]
fn a_failed_write_is_cleared_at_once() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    registry.commit("taste", &lora(0.25), provenance()).unwrap();
    // The place is taken by a folder with something in it: the rename fails, the last of the steps that can.
    let manifest = registry.describe(id("taste@9"), &lora(0.5), &files(), provenance());
    let taken = registry.root.join(folder_name(&manifest));
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("x"), "x").unwrap();
    assert!(commit::commit(&registry.root, &folder_name(&manifest), &files(), &manifest).is_err());
    assert!(!registry.folders().unwrap().iter().any(|folder| folder.starts_with(TEMPORARY)));
}

#[test]
fn an_interrupted_removal_is_finished() {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    registry.commit("taste", &lora(0.25), provenance()).unwrap();
    let from = folder_of(&registry, "taste@1");
    let to = registry.root.join(format!("{REMOVED}{}", from.file_name().unwrap().to_str().unwrap()));
    fs::rename(&from, &to).unwrap();
    assert_eq!(ids(&open(&dir)), [""; 0]);
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
}

/// The reason given for the one damaged folder, after `damage` to the folder of `taste@1`.
fn damaged(damage: impl FnOnce(&Path)) -> String {
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    registry.commit("taste", &lora(0.25), provenance()).unwrap();
    registry.commit("taste", &lora(0.5), provenance()).unwrap();
    damage(&folder_of(&registry, "taste@1"));
    let registry = open(&dir);
    let listing = registry.list().unwrap();
    assert_eq!(listing.versions.iter().map(|m| m.id.to_string()).collect::<Vec<_>>(), ["taste@2"]);
    assert_eq!(listing.damaged.len(), 1);
    if parse_folder(&listing.damaged[0].folder).is_some() {
        assert!(matches!(registry.load(&id("taste@1")), Err(AdapterError::Damaged { .. })));
        assert_eq!(registry.next_number("taste").unwrap(), 3);
    }
    listing.damaged[0].reason.clone()
}

#[test]
fn damage_is_reported_and_skipped() {
    let write =
        |name: &'static str, content: Vec<u8>| damaged(move |folder| fs::write(folder.join(name), content).unwrap());
    let change = |name: &'static str| {
        damaged(move |folder| {
            let mut bytes = fs::read(folder.join(name)).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(folder.join(name), bytes).unwrap();
        })
    };
    let edit = |from: &'static str, to: &'static str| {
        damaged(move |folder| {
            let text = fs::read_to_string(folder.join(MANIFEST_FILE)).unwrap();
            assert!(text.contains(from));
            fs::write(folder.join(MANIFEST_FILE), text.replace(from, to)).unwrap();
        })
    };
    for name in [MODEL_FILE, CONFIG_FILE, MANIFEST_FILE] {
        let missing = damaged(|folder| fs::remove_file(folder.join(name)).unwrap());
        assert!(missing.contains(name), "{missing}");
        assert!(write(name, vec![]).contains(name));
    }
    assert!(change(MODEL_FILE).contains(MODEL_FILE));
    assert!(change(CONFIG_FILE).contains(CONFIG_FILE));
    assert!(edit("taste@1", "taste@7").contains("another version"));
    assert!(edit("abab", "cdcd").contains("SHA-256"));
    assert!(write(MANIFEST_FILE, vec![b'['; 100_000]).contains(MANIFEST_FILE));
    assert!(write(MANIFEST_FILE, vec![b' '; 2 << 20]).contains("limit"));
    let renamed = damaged(|folder| fs::rename(folder, folder.with_file_name("mine")).unwrap());
    assert!(renamed.contains("NAME-vNUMBER-HASH"), "{renamed}");
}

#[cfg(unix)]
#[test]
fn links_are_refused() {
    use std::os::unix::fs::symlink;
    let outside = TempDir::new().unwrap();
    let file = damaged(|folder| {
        fs::rename(folder.join(MODEL_FILE), outside.path().join("model")).unwrap();
        symlink(outside.path().join("model"), folder.join(MODEL_FILE)).unwrap();
    });
    assert!(file.contains("link"), "{file}");
    let folder = damaged(|folder| {
        fs::rename(folder, outside.path().join("version")).unwrap();
        symlink(outside.path().join("version"), folder).unwrap();
    });
    assert!(folder.contains("link"), "{folder}");
    // What is cleared away is the link, not what it points to.
    let dir = TempDir::new().unwrap();
    let registry = open(&dir);
    for prefix in [TEMPORARY, REMOVED] {
        symlink(outside.path(), registry.root.join(format!("{prefix}x"))).unwrap();
    }
    open(&dir);
    assert!(outside.path().join("model").is_file());
    symlink(outside.path(), dir.path().join("adapters")).unwrap();
    let root = Registry::open(&dir.path().join("adapters"), base(), Limits::default()).unwrap_err().to_string();
    assert!(root.contains("link"), "{root}");
}

#[test]
fn bases_do_not_see_each_other() {
    let dir = TempDir::new().unwrap();
    open(&dir).commit("taste", &lora(0.25), provenance()).unwrap();
    let other = Base { sha256: "cd".repeat(32), ..base() };
    let registry = Registry::open(dir.path(), other, Limits::default()).unwrap();
    assert_eq!(ids(&registry), [""; 0]);
    assert!(matches!(registry.import("taste", &files(), provenance()), Err(AdapterError::WrongBase { .. })));
    let nonsense = Base { sha256: "../../etc".into(), ..base() };
    assert!(Registry::open(dir.path(), nonsense, Limits::default()).is_err());
}
