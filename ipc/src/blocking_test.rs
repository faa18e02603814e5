use super::*;

struct Adder;

impl Interface for Adder {
    fn name(&self) -> &'static str {
        "io.strata.Test"
    }

    fn description(&self) -> &'static str {
        "interface io.strata.Test\n\nmethod Add(a: int, b: int) -> (sum: int)\n"
    }

    fn product(&self) -> &'static str {
        "test"
    }

    fn call(&self, method: &str, given: Value) -> Result<Value, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Add {
            a: i64,
            b: i64,
        }
        match method {
            "Add" => {
                let Add { a, b } = parameters(given, "a")?;
                let sum = a.checked_add(b).ok_or_else(|| Failure::refused("too large"))?;
                Ok(json!({ "sum": sum }))
            }
            _ => Err(Failure::unknown(method)),
        }
    }

    fn upgrade(&self, method: &str, given: Value) -> Result<Upgraded, Failure> {
        match method {
            "Echo" => Ok(Box::new(|mut client| {
                let mut said = [0; 5];
                client.set_nonblocking(false).unwrap();
                client.read_exact(&mut said).unwrap();
                client.write_all(&said).unwrap();
            })),
            "Never" => Err(Failure::refused(given)),
            _ => Err(Failure::unknown(method)),
        }
    }
}

fn ask(message: &str) -> Value {
    let mut reply = answer(message.as_bytes(), &Adder).unwrap().reply.unwrap();
    assert_eq!(reply.pop(), Some(0));
    serde_json::from_slice(&reply).unwrap()
}

fn error(message: &str) -> String {
    ask(message)["error"].as_str().unwrap().to_owned()
}

#[test]
fn calls_and_their_errors() {
    let sum = ask(r#"{"method":"io.strata.Test.Add","parameters":{"a":2,"b":3}}"#);
    assert_eq!(sum, json!({ "parameters": { "sum": 5 } }));
    let large = r#"{"method":"io.strata.Test.Add","parameters":{"a":9223372036854775807,"b":1}}"#;
    assert_eq!(
        ask(large),
        json!({ "error": "io.strata.Test.Refused", "parameters": { "reason": "too large" } })
    );
    for wrong in [r#"{"a":1}"#, "[1,2]", r#"{"a":"x","b":1}"#, r#"{"a":1,"b":2,"c":3}"#, "null", "7"] {
        let call = format!(r#"{{"method":"io.strata.Test.Add","parameters":{wrong}}}"#);
        assert_eq!(error(&call), "org.varlink.service.InvalidParameter", "{wrong}");
    }
    let missing = ask(r#"{"method":"io.strata.Test.Sub"}"#);
    assert_eq!(missing["error"], "org.varlink.service.MethodNotFound");
    assert_eq!(missing["parameters"]["method"], "io.strata.Test.Sub");
    assert_eq!(error(r#"{"method":"io.strata.Other.Add"}"#), "org.varlink.service.InterfaceNotFound");
    assert_eq!(error(r#"{"method":"org.varlink.service.Nothing"}"#), "org.varlink.service.MethodNotFound");
    assert_eq!(error(r#"{"method":"Add"}"#), "org.varlink.service.MethodNotFound");
    let oneway = br#"{"method":"io.strata.Test.Add","parameters":{"a":2,"b":3},"oneway":true}"#;
    assert_eq!(answer(oneway, &Adder).unwrap().reply, None);
}

#[test]
fn it_describes_itself() {
    let info = ask(r#"{"method":"org.varlink.service.GetInfo"}"#);
    assert_eq!(info["parameters"]["interfaces"], json!(["org.varlink.service", "io.strata.Test"]));
    for interface in ["org.varlink.service", "io.strata.Test"] {
        let call = format!(
            r#"{{"method":"org.varlink.service.GetInterfaceDescription","parameters":{{"interface":"{interface}"}}}}"#
        );
        let text = ask(&call)["parameters"]["description"].as_str().unwrap().to_owned();
        assert!(text.starts_with(&format!("interface {interface}\n")), "{text}");
    }
}

#[test]
fn clients_one_after_another_and_bad_ones_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    spawn(UnixListener::bind(&path).unwrap(), Adder).unwrap();
    let call = b"{\"method\":\"io.strata.Test.Add\",\"parameters\":{\"a\":1,\"b\":1}}\0";
    for bad in [&b"nonsense\0"[..], b"{}\0", b"\0", &[b'x'; 200_000]] {
        let mut client = UnixStream::connect(&path).unwrap();
        // It may be dropped before all is written.
        let _ = client.write_all(bad);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.is_empty());
        let mut honest = UnixStream::connect(&path).unwrap();
        // Two calls at once, the second one in two parts.
        honest.write_all(&[&call[..], &call[..20]].concat()).unwrap();
        honest.write_all(&call[20..]).unwrap();
        honest.shutdown(std::net::Shutdown::Write).unwrap();
        let mut replies = Vec::new();
        honest.read_to_end(&mut replies).unwrap();
        assert_eq!(replies, b"{\"parameters\":{\"sum\":2}}\0".repeat(2));
    }
}

#[test]
fn a_connection_can_be_taken_over_and_others_are_served_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    spawn(UnixListener::bind(&path).unwrap(), Adder).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"{\"method\":\"io.strata.Test.Echo\",\"upgrade\":true}\0").unwrap();
    let mut reply = [0; 18];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"{\"parameters\":{}}\0");
    let mut other = UnixStream::connect(&path).unwrap();
    other.write_all(b"{\"method\":\"io.strata.Test.Add\",\"parameters\":{\"a\":1,\"b\":1}}\0").unwrap();
    let mut sum = [0; 24];
    other.read_exact(&mut sum).unwrap();
    client.write_all(b"hello").unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"hello");
    for (method, wrong) in
        [("Never", "io.strata.Test.Refused"), ("Other", "org.varlink.service.MethodNotFound")]
    {
        assert_eq!(error(&format!(r#"{{"method":"io.strata.Test.{method}","upgrade":true}}"#)), wrong);
    }
    assert_eq!(
        error(r#"{"method":"org.varlink.service.GetInfo","upgrade":true}"#),
        "org.varlink.service.MethodNotFound"
    );
}
