//! Every input that fuzzing found worth keeping, through the same checks, without a fuzzer.

use std::path::Path;

#[path = "fuzz/checks/aead.rs"]
mod aead;
#[path = "fuzz/checks/peer.rs"]
mod peer;
#[path = "fuzz/checks/segment_coalesce.rs"]
mod segment_coalesce;
#[path = "fuzz/checks/wire.rs"]
mod wire;

/// Runs `check` over the files of `corpus/<target>`, and over each of them cut short in a few places.
fn run(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let mut files = 0;
    for entry in corpus.read_dir().expect("the corpus is committed") {
        let path = entry.expect("the corpus can be listed").path();
        println!("{}", path.display());
        let data = std::fs::read(path).expect("the corpus can be read");
        check(&data);
        (1..8).for_each(|eighths| check(&data[..data.len() * eighths / 8]));
        files += 1;
    }
    assert!(files > 0, "no corpus for {target}");
}

#[test]
fn wire_holds_over_its_corpus() {
    run("wire", wire::check);
}

#[test]
fn segment_coalesce_holds_over_its_corpus() {
    run("segment_coalesce", segment_coalesce::check);
}

#[test]
fn peer_holds_over_its_corpus() {
    run("peer", peer::check);
}

#[test]
fn aead_holds_over_its_corpus() {
    run("aead", aead::check);
}
