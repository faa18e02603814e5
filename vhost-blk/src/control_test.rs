use super::*;
use crate::disk::OnError;
use crate::engine::EngineKind;
use crate::image::{Cache, Files, Format, Image, ImageOptions};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::sync::Arc;

fn disk(dir: &tempfile::TempDir) -> Arc<Disk> {
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let options = ImageOptions { path, read_only: false, format: Format::Auto, cache: Cache::Writeback };
    Disk::new(Files::one(Image::open(&options).unwrap()), None, EngineKind::Sync, 2, "", OnError::Report)
        .unwrap()
}

fn ask(disk: &Disk, method: &str, parameters: &Value) -> Value {
    let call = json!({ "method": method, "parameters": parameters });
    let reply =
        calls::answer(&serde_json::to_vec(&call).unwrap(), disk, &ConfigChange::default()).unwrap().unwrap();
    let (end, reply) = reply.split_last().unwrap();
    assert_eq!(*end, 0);
    serde_json::from_slice(reply).unwrap()
}

#[test]
fn a_disk_is_described_counted_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir);
    let status = ask(&disk, "io.strata.Disk.GetStatus", &json!({}));
    assert_eq!(status["parameters"]["bytes"], 1 << 20);
    disk.tallies[1].reads.add(7);
    let counts = ask(&disk, "io.strata.Disk.GetStatistics", &Value::Null);
    assert_eq!(counts["parameters"]["queues"][1]["reads"], 7);
    let text = ask(&disk, "io.strata.Disk.GetMetrics", &json!({}));
    assert!(text["parameters"]["text"].as_str().unwrap().contains("queue=\"1\",op=\"read\"} 7\n"));

    assert_eq!(
        ask(&disk, "io.strata.Disk.Resize", &json!({ "bytes": 2 << 20 })),
        json!({ "parameters": {} })
    );
    assert_eq!(disk.limits().capacity, 4096);
    assert_eq!(std::fs::metadata(dir.path().join("disk.img")).unwrap().len(), 2 << 20);
    for (bytes, reason) in [(1 << 20, "only grows"), ((2 << 20) + 100, "whole number of blocks")] {
        let refused = ask(&disk, "io.strata.Disk.Resize", &json!({ "bytes": bytes }));
        assert_eq!(refused["error"], "io.strata.Disk.Refused");
        assert!(refused["parameters"]["reason"].as_str().unwrap().contains(reason), "{refused}");
    }

    let rates = json!({ "iops": 100, "iops_burst": 5 });
    ask(&disk, "io.strata.Disk.SetRates", &json!({ "rates": rates }));
    assert_eq!(disk.limiter.rates().iops, 100);
    assert_eq!(ask(&disk, "io.strata.Disk.GetStatus", &json!({}))["parameters"]["rates"]["iops_burst"], 5);
}

#[test]
fn what_is_not_understood_gets_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir);
    for (method, parameters, error) in [
        ("io.strata.Disk.Explode", json!({}), "org.varlink.service.MethodNotFound"),
        ("io.strata.Other.GetStatus", json!({}), "org.varlink.service.InterfaceNotFound"),
        ("nothing", json!({}), "org.varlink.service.MethodNotFound"),
        ("io.strata.Disk.Resize", json!({}), "org.varlink.service.InvalidParameter"),
        ("io.strata.Disk.Resize", json!({ "bytes": -1 }), "org.varlink.service.InvalidParameter"),
        ("io.strata.Disk.Resize", json!([1]), "org.varlink.service.InvalidParameter"),
        (
            "io.strata.Disk.SetRates",
            json!({ "rates": { "ipos": 1 } }),
            "org.varlink.service.InvalidParameter",
        ),
        (
            "org.varlink.service.GetInterfaceDescription",
            json!({ "interface": "x" }),
            "org.varlink.service.InterfaceNotFound",
        ),
    ] {
        assert_eq!(ask(&disk, method, &parameters)["error"], error, "{method} {parameters}");
    }
}

#[test]
fn every_method_is_in_the_description_and_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir);
    let reply =
        ask(&disk, "org.varlink.service.GetInterfaceDescription", &json!({ "interface": "io.strata.Disk" }));
    let text = reply["parameters"]["description"].as_str().unwrap();
    for line in text.lines().filter_map(|line| line.strip_prefix("method ")) {
        let name = line.split('(').next().unwrap();
        let reply = ask(&disk, &format!("io.strata.Disk.{name}"), &json!({ "no such parameter": 1 }));
        assert_ne!(reply["error"], "org.varlink.service.MethodNotFound", "{name}");
    }
    let counts = ask(&disk, "io.strata.Disk.GetStatistics", &json!({}));
    for field in counts["parameters"]["queues"][0].as_object().unwrap().keys() {
        assert!(text.contains(&format!("  {field}: ")), "{field}");
    }
    for field in ask(&disk, "io.strata.Disk.GetStatus", &json!({}))["parameters"].as_object().unwrap().keys()
    {
        assert!(text.contains(&format!("  {field}: ")), "{field}");
    }
}

#[test]
fn clients_come_one_after_another_whatever_they_send() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let listener = UnixListener::bind(&socket).unwrap();
    let disk = disk(&dir);
    spawn(listener, Arc::downgrade(&disk), ConfigChange::default()).unwrap();
    for nonsense in [&b"\0"[..], b"{\0", b"[]\0", b"null\0{}\0", &[0xff; 100_000], b"{\"method\":1}\0"] {
        let mut client = UnixStream::connect(&socket).unwrap();
        let _ = client.write_all(nonsense);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    }
    let mut client = UnixStream::connect(&socket).unwrap();
    // Two calls at once, in pieces.
    let call = b"{\"method\":\"io.strata.Disk.GetStatus\"}\0{\"method\":\"io.strata.Disk.GetStatistics\"}\0";
    for piece in call.chunks(17) {
        client.write_all(piece).unwrap();
    }
    let mut received: Vec<u8> = Vec::new();
    while received.iter().filter(|byte| **byte == 0).count() < 2 {
        let mut part = [0; 256];
        let length = client.read(&mut part).unwrap();
        assert!(length > 0);
        received.extend(&part[..length]);
    }
}
