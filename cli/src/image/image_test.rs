use std::process::Command;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: ImageCommand,
}

fn strata_image(words: &[&str]) -> anyhow::Result<()> {
    run(&Line::try_parse_from(std::iter::once(&"image").chain(words))?.command)
}

fn said(words: &[&str]) -> String {
    format!("{:#}", strata_image(words).expect_err("refused"))
}

/// What qemu-img thinks of an image, where there is one.
fn qemu_img(words: &[&str]) -> Option<serde_json::Value> {
    match Command::new("qemu-img").args(words).args(["--output", "json"]).output() {
        Ok(output) => {
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(serde_json::from_slice(&output.stdout).unwrap())
        }
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "qemu-img should be here");
            println!("skipped: no qemu-img");
            None
        }
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn raw_images_are_sparse_or_preallocated() {
    let folder = Folder::new();
    let (sparse, full) = (folder.path("sparse.img"), folder.path("full.img"));
    strata_image(&["create", &sparse, "3M"]).unwrap();
    strata_image(&["create", &full, "3M", "--preallocate"]).unwrap();
    let stat = |path: &str| std::fs::metadata(path).unwrap();
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    assert_eq!((stat(&sparse).len(), stat(&sparse).blocks()), (3 << 20, 0));
    assert!(stat(&full).blocks() * 512 >= 3 << 20);
    assert_eq!(stat(&full).permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_qcow2_image_is_one_to_qemu_img() {
    let folder = Folder::new();
    let path = folder.path("disk.qcow2");
    strata_image(&["create", &path, "5G", "--cluster-size", "128K"]).unwrap();
    if let Some(info) = qemu_img(&["info", &path]) {
        assert_eq!((&info["format"], &info["virtual-size"]), (&"qcow2".into(), &(5u64 << 30).into()));
        assert_eq!(info["cluster-size"], 128 << 10);
        assert_eq!(qemu_img(&["check", &path]).unwrap()["check-errors"], 0);
    }
    strata_image(&["info", &path]).unwrap();
    strata_image(&["info", &path, "--output", "json"]).unwrap();
}

#[test]
fn an_overlay_has_its_bases_size_and_names_it() {
    let folder = Folder::new();
    let (raw, golden, node) =
        (folder.path("base.img"), folder.path("golden.qcow2"), folder.path("node.qcow2"));
    std::fs::write(&raw, vec![7; (1 << 20) + 100]).unwrap();
    strata_image(&["overlay", &raw, &golden]).unwrap();
    strata_image(&["overlay", &golden, &node, "--size", "8M"]).unwrap();
    let layers = info::chain_of(Path::new(&node));
    assert_eq!(layers, [("qcow2", 8 << 20), ("qcow2", 1 << 20), ("raw", (1 << 20) + 100)]);
    if let Some(info) = qemu_img(&["info", &node]) {
        assert_eq!(
            (&info["backing-filename"], &info["backing-filename-format"]),
            (&"golden.qcow2".into(), &"qcow2".into())
        );
        assert_eq!(qemu_img(&["check", &node]).unwrap()["check-errors"], 0);
    }
    // From elsewhere the whole path is named.
    let other = Folder::new();
    let away = other.path("away.qcow2");
    strata_image(&["overlay", &golden, &away]).unwrap();
    let (header, _) = info::header_of(Path::new(&away));
    assert_eq!(header.as_deref(), Some(std::fs::canonicalize(&golden).unwrap().to_str().unwrap()));
}

#[test]
fn what_is_there_is_not_written_over_and_what_fails_leaves_nothing() {
    let folder = Folder::new();
    let path = folder.path("disk.img");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(said(&["create", &path, "1M"]), format!("{path} exists already; images are not written over"));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let new = folder.path("new.img");
    assert_eq!(said(&["create", &new, "0"]), "a disk of 0 bytes; give a size such as 20G");
    // More than a file of this file system can be.
    assert!(said(&["create", &new, "8000000T"]).starts_with(&format!("cannot make {new}")));
    assert!(!Path::new(&new).exists());
    assert!(
        said(&["create", &new, "1M", "--format", "qcow2", "--preallocate"])
            .starts_with("--preallocate is for raw")
    );
    assert!(
        said(&["create", &new, "1M", "--cluster-size", "3K"])
            .contains("must be a power of two from 4K to 2M")
    );
    assert!(!Path::new(&new).exists());
}

#[test]
fn a_format_is_not_guessed_from_what_a_guest_may_have_written() {
    let folder = Folder::new();
    let (disguised, misnamed, node) =
        (folder.path("disk.img"), folder.path("x.qcow2"), folder.path("node.qcow2"));
    strata_image(&["create", &disguised, "1M", "--format", "qcow2"]).unwrap();
    std::fs::write(&misnamed, vec![0; 1 << 20]).unwrap();
    assert!(
        said(&["overlay", &disguised, &node])
            .contains("begins like a qcow2 image, and its name does not say so")
    );
    assert!(said(&["overlay", &misnamed, &node]).contains("does not begin like a qcow2 image"));
    assert!(!Path::new(&node).exists());
    strata_image(&["overlay", &disguised, &node, "--base-format", "raw"]).unwrap();
    assert_eq!(info::chain_of(Path::new(&node)).last().unwrap().0, "raw");
    assert!(said(&["overlay", &folder.path("none"), &folder.path("y.qcow2")]).starts_with("no base"));
    assert!(
        said(&["overlay", &disguised, &folder.path("y.qcow2"), "--base-format", "raw", "--size", "4K"])
            .contains("is less than")
    );
}

#[test]
fn what_is_no_image_is_an_error() {
    let folder = Folder::new();
    let broken = folder.path("broken");
    std::fs::write(&broken, [b"QFI\xfb".as_slice(), &[0xff; 200]].concat()).unwrap();
    assert!(said(&["info", &broken]).contains("cannot be read as qcow2"));
    assert!(said(&["info", folder.0.path().to_str().unwrap()]).contains("neither a file nor a block device"));
    assert!(said(&["info", &folder.path("none")]).starts_with("cannot open"));
    // One that is behind itself.
    let circle = folder.path("circle.qcow2");
    strata_image(&["create", &circle, "1M"]).unwrap();
    let away = folder.path("away.qcow2");
    strata_image(&["overlay", &circle, &away]).unwrap();
    std::fs::rename(&away, &circle).unwrap();
    assert!(said(&["info", &circle]).contains("in a circle"));
}
