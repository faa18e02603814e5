//! The tables are read back as a kernel does: from the anchor, structure by structure.

use super::*;

fn facts(credentials: &[(&str, &[u8])]) -> Facts {
    let own = |(name, content): &(&str, &[u8])| ((*name).to_owned(), content.to_vec());
    Facts {
        name: "web".to_owned(),
        uuid: std::array::from_fn(|at| at as u8),
        credentials: credentials.iter().map(own).collect(),
    }
}

/// Each structure: its type, its formatted part with the header, its strings.
fn read(memory: &Memory) -> Vec<(u8, Vec<u8>, Vec<String>)> {
    let mut entry = [0; ENTRY];
    memory.read_at(layout::SMBIOS.start, &mut entry).unwrap();
    assert_eq!((&entry[..5], entry[6]), (b"_SM3_".as_slice(), 24));
    assert_eq!(entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    let size = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
    let at = u64::from_le_bytes(entry[16..].try_into().unwrap());
    assert!(layout::SMBIOS.contains(&(at + size as u64 - 1)));
    let mut bytes = vec![0; size];
    memory.read_at(at, &mut bytes).unwrap();
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let length = usize::from(rest[1]);
        let end = length + rest[length..].windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = String::from_utf8(rest[length..end].to_vec()).unwrap();
        let strings = strings.split('\0').map(str::to_owned).filter(|text| !text.is_empty()).collect();
        found.push((rest[0], rest[..length].to_vec(), strings));
        rest = &rest[end + 2..];
    }
    found
}

#[test]
fn a_kernel_finds_name_uuid_and_credentials() {
    let memory = Memory::anonymous(1 << 20).unwrap();
    write(&memory, &facts(&[("motd", b"hello there"), ("key", &[0, 255, 1]), ("none", b"")])).unwrap();
    let found = read(&memory);
    assert_eq!(found.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [0, 1, 11, 127]);
    // Virtual machine.
    assert_eq!(found[0].1[0x13] & 0x10, 0x10);
    let (_, system, strings) = &found[1];
    assert_eq!(system.len(), 0x1b);
    assert_eq!(strings[usize::from(system[7]) - 1], "web");
    assert_eq!(system[8..24], [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
    let (_, oem, strings) = &found[2];
    assert_eq!(oem[4], 3);
    assert_eq!(
        *strings,
        [
            "io.systemd.credential:motd=hello there",
            "io.systemd.credential.binary:key=AP8B",
            "io.systemd.credential.binary:none="
        ]
    );
}

#[test]
fn without_credentials_there_is_no_list_of_them() {
    let memory = Memory::anonymous(1 << 20).unwrap();
    write(&memory, &facts(&[])).unwrap();
    assert_eq!(read(&memory).iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [0, 1, 127]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = Memory::anonymous(1 << 20).unwrap();
    let (room, big) = (room() as usize, vec![b'x'; room() as usize]);
    let error = write(&memory, &facts(&[("a", &big)])).unwrap_err().to_string();
    assert!(error.contains("there is room for 255"), "{error}");
    write(&memory, &facts(&[("a", &big[..room - 300])])).unwrap();
    let many: Vec<(&str, &[u8])> = vec![("a", b"b"); 256];
    assert!(matches!(check(&facts(&many)), Err(SmbiosError::TooLarge { count: 256, .. })));
    assert!(check(&facts(&many[..255])).is_ok());
}

#[test]
fn base64_is_the_one_of_the_rfc() {
    for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
        assert_eq!(base64(plain.as_bytes()), text.as_bytes());
    }
}
