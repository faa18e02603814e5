//! What single exits were about: which CPUID leaf, which register, which page. For those who look for exits to save.
//!
//! Owns: the triggers of KVM's other tracepoints while it counts. Called by: the exit bench with `--detail`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

/// (tracepoint, keys, what is shown of it).
const EVENTS: [(&str, &str); 6] = [
    ("kvm_cpuid", "function.hex,index.hex"),
    ("kvm_msr", "write,ecx.hex"),
    ("kvm_cr", "rw,cr"),
    ("kvm_pio", "rw,port.hex"),
    ("kvm_mmio", "type,gpa.hex"),
    ("kvm_page_fault", "fault_address.hex,error_code.hex"),
];

/// A count that is running.
pub struct Detail {
    events: PathBuf,
}

impl Detail {
    /// Starts counting from zero.
    ///
    /// # Errors
    /// If the tracepoints are out of reach (needs root and tracefs).
    pub fn start() -> anyhow::Result<Self> {
        let detail = Self { events: super::events()? };
        detail.stop();
        for (event, keys) in EVENTS {
            detail.trigger(event, &trigger(keys))?;
        }
        Ok(detail)
    }

    /// A table for each tracepoint: count, then key; most frequent first.
    ///
    /// # Errors
    /// If a histogram cannot be read.
    pub fn so_far(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for (event, _) in EVENTS {
            let path = self.events.join(event).join("hist");
            let hist =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut rows: Vec<(u64, String)> = hist.lines().filter_map(row).collect();
            rows.sort_by_key(|(count, key)| (std::cmp::Reverse(*count), key.clone()));
            let total: u64 = rows.iter().map(|(count, _)| count).sum();
            text += &format!("{event}: {total}\n");
            for (count, key) in rows {
                text += &format!("  {count:6} {key}\n");
            }
        }
        Ok(text)
    }

    fn trigger(&self, event: &str, text: &str) -> anyhow::Result<()> {
        let path = self.events.join(event).join("trigger");
        fs::write(&path, text).with_context(|| format!("cannot set {}", path.display()))
    }

    fn stop(&self) {
        for (event, keys) in EVENTS {
            let _ = self.trigger(event, &format!("!{}", trigger(keys)));
        }
    }
}

impl Drop for Detail {
    fn drop(&mut self) {
        self.stop();
    }
}

fn trigger(keys: &str) -> String {
    format!("hist:keys={keys}:size=8192")
}

/// `{ write: 1, ecx: 6e0 } hitcount: 503`, with spaces between.
fn row(line: &str) -> Option<(u64, String)> {
    let (key, count) = line.strip_prefix('{')?.split_once('}')?;
    let count = count.split_once("hitcount:")?.1.trim().parse().ok()?;
    Some((count, key.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::row;

    #[test]
    fn a_row_is_its_count_and_its_keys() {
        let line = "{ write:          1, ecx:        6e0 } hitcount:        503";
        assert_eq!(row(line), Some((503, "write: 1, ecx: 6e0".to_owned())));
        assert_eq!(row("# trigger info: hist:keys=write,ecx.hex"), None);
    }
}
