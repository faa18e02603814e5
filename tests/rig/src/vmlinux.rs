//! Takes the ELF image out of a bzImage, so that one kernel package gives both of the formats we boot.
//!
//! Called by: `kernel`. The boot protocol says where the packed kernel lies (Documentation/arch/x86/boot.rst, fields
//! `setup_sects`, `payload_offset`, `payload_length`, since protocol 2.08), so nothing is guessed but the packer.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::tool;

const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The ELF kernel inside `bzimage`.
///
/// # Errors
/// If it is no bzImage, or packed in a way that no tool here unpacks.
pub fn extract(bzimage: &[u8]) -> anyhow::Result<Vec<u8>> {
    let payload = payload(bzimage).context("not a bzImage of boot protocol 2.08 or newer")?;
    let (program, trailer) = match payload {
        // All but gzip are followed by the unpacked size in four bytes (scripts/Makefile.lib, size_append).
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", 4),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", 4),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", 4),
        [0x1f, 0x8b, ..] => ("gzip", 0),
        _ => bail!("the kernel is packed with something other than zstd, xz, lz4 or gzip"),
    };
    let packed = payload.get(..payload.len() - trailer).unwrap_or_default();
    let image = unpack(program, packed)?;
    if !image.starts_with(b"\x7fELF") {
        bail!("what {program} unpacked is not an ELF file");
    }
    Ok(image)
}

fn payload(bzimage: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(bzimage.get(at..at + 4)?.try_into().ok()?) as usize);
    if bzimage.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let sectors = match *bzimage.get(SETUP_SECTS)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    bzimage.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)
}

fn unpack(program: &str, packed: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = tool::command(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let packed = packed.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&packed));
    let output = child.wait_with_output()?;
    let fed = feeder.join();
    if !output.status.success() || !matches!(fed, Ok(Ok(()))) {
        bail!("{program} could not unpack the kernel: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_kernel() {
        for bytes in [&b""[..], &[0; 4096][..], b"\x7fELF"] {
            assert!(extract(bytes).is_err());
        }
    }

    #[test]
    fn unpacks_a_small_bzimage() {
        let elf = b"\x7fELF and the rest";
        let mut child =
            tool::command("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(elf).unwrap();
        let packed = child.wait_with_output().unwrap().stdout;
        let mut image = vec![0u8; 1024 + 16];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        image.extend_from_slice(&packed);
        assert_eq!(extract(&image).unwrap(), elf);
    }
}
