//! How an own vhost-blk serves a disk's image: cache, engine, limits, what a failure means, its threads.
//!
//! Owns these keys' rules, both ways: [`Serving::check`] from the file, [`Serving::write`] back to it. What they mean
//! is vhost-blk's; its `--help` says it too.

use crate::cpu_list;
use crate::entry::DiskEntry;
use crate::error::ConfigError;
use crate::size::{NumberOrText, Size};

/// The most queues, so the most threads to pin.
const MOST_CPUS: usize = 64;
/// CPU_SETSIZE of glibc.
const CPUS: u16 = 1024;
/// More requests in a second than any processor has cycles for.
const MOST_IOPS: i64 = 1_000_000_000;

/// How an image is served. What is `None` is left to vhost-blk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serving {
    /// Use of the host's page cache.
    pub cache: Option<Cache>,
    /// How requests reach the image.
    pub engine: Option<Engine>,
    /// What happens when the image fails.
    pub on_error: Option<OnError>,
    /// Most requests per second.
    pub iops: Option<u64>,
    /// Requests at once after a pause.
    pub iops_burst: Option<u64>,
    /// Most bytes per second, a multiple of 1024.
    pub bytes_per_second: Option<u64>,
    /// Bytes at once after a pause, a multiple of 1024.
    pub bytes_burst: Option<u64>,
    /// The processor of each queue's thread, in order; at most 64.
    pub cpus: Vec<u16>,
    /// Longest time in microseconds that a queue is polled before its thread sleeps, up to 5000.
    pub poll_us: Option<u16>,
    /// Longest time in microseconds that a call is put off while the queue is polled, up to 1000.
    pub coalesce_us: Option<u16>,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $($(#[$of:meta])* $variant:ident = $word:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $variant,)*
        }

        impl $name {
            const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word the file and vhost-blk use.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            fn check(key: &str, word: &str) -> Result<Self, ConfigError> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word).ok_or_else(|| {
                    let words: Vec<&str> = Self::ALL.iter().map(|known| known.as_str()).collect();
                    ConfigError::text(key, word, format!("must be one of {}", words.join(", ")))
                })
            }
        }
    };
}

words! {
    /// Use of the host's page cache.
    Cache:
    /// As `None` where the file system can, else as `Writeback`.
    Auto = "auto",
    /// Direct I/O.
    None = "none",
    /// Through the page cache; a flush reaches the device.
    Writeback = "writeback",
    /// Through the page cache; a flush does nothing.
    Unsafe = "unsafe",
}

words! {
    /// How requests reach the image.
    Engine:
    /// As `IoUring` where the kernel lets us, else as `Sync`.
    Auto = "auto",
    /// io_uring.
    IoUring = "io_uring",
    /// System calls that wait.
    Sync = "sync",
}

words! {
    /// What happens when the image fails.
    OnError:
    /// The guest is told.
    Report = "report",
    /// The queue waits until it is resumed.
    Stop = "stop",
}

impl Serving {
    pub(crate) fn check(entry: &DiskEntry) -> Result<Self, ConfigError> {
        let iops = |key, value: Option<i64>| {
            value
                .map(|value| match u64::try_from(value) {
                    Ok(rate @ 1..) if value <= MOST_IOPS => Ok(rate),
                    _ => Err(ConfigError::value(key, value, format!("must be 1 to {MOST_IOPS}"))),
                })
                .transpose()
        };
        let bytes = |key, value: &Option<NumberOrText>| {
            value
                .as_ref()
                .map(|value| match Size::read(value) {
                    Ok(Size(0)) => Err(ConfigError::value(key, value, "must be more than 0")),
                    Ok(Size(bytes)) => Ok(bytes),
                    Err(form) => Err(ConfigError::value(key, value, format!("must be {form}"))),
                })
                .transpose()
        };
        let serving = Self {
            cache: entry.cache.as_deref().map(|word| Cache::check("cache", word)).transpose()?,
            engine: entry.engine.as_deref().map(|word| Engine::check("engine", word)).transpose()?,
            on_error: entry.on_error.as_deref().map(|word| OnError::check("on_error", word)).transpose()?,
            iops: iops("iops", entry.iops)?,
            iops_burst: iops("iops_burst", entry.iops_burst)?,
            bytes_per_second: bytes("bytes_per_second", &entry.bytes_per_second)?,
            bytes_burst: bytes("bytes_burst", &entry.bytes_burst)?,
            cpus: entry.cpus.as_ref().map(cpus).transpose()?.unwrap_or_default(),
            poll_us: micros("poll_us", entry.poll_us, "never poll", 5000)?,
            coalesce_us: micros("coalesce_us", entry.coalesce_us, "call at once", 1000)?,
        };
        let alone = |burst: &str, rate: &str| ConfigError::Conflict {
            path: String::new(),
            reason: format!("`{burst}` is nothing without `{rate}`; give that too"),
        };
        if serving.iops_burst.is_some() && serving.iops.is_none() {
            return Err(alone("iops_burst", "iops"));
        }
        if serving.bytes_burst.is_some() && serving.bytes_per_second.is_none() {
            return Err(alone("bytes_burst", "bytes_per_second"));
        }
        Ok(serving)
    }

    pub(crate) fn write(self, entry: &mut DiskEntry) {
        let number = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
        let size = |value: Option<u64>| value.map(|bytes| NumberOrText::Text(Size(bytes).to_string()));
        entry.cache = self.cache.map(|cache| cache.as_str().to_owned());
        entry.engine = self.engine.map(|engine| engine.as_str().to_owned());
        entry.on_error = self.on_error.map(|what| what.as_str().to_owned());
        entry.iops = number(self.iops);
        entry.iops_burst = number(self.iops_burst);
        entry.bytes_per_second = size(self.bytes_per_second);
        entry.bytes_burst = size(self.bytes_burst);
        let cpus: Vec<String> = self.cpus.iter().map(u16::to_string).collect();
        entry.cpus = (!cpus.is_empty()).then(|| NumberOrText::Text(cpus.join(",")));
        entry.poll_us = self.poll_us.map(i64::from);
        entry.coalesce_us = self.coalesce_us.map(i64::from);
    }

    /// The keys of an entry that are about an own vhost-blk, and whether each is given.
    pub(crate) fn keys(entry: &DiskEntry) -> [(&'static str, bool); 10] {
        [
            ("cache", entry.cache.is_some()),
            ("engine", entry.engine.is_some()),
            ("on_error", entry.on_error.is_some()),
            ("iops", entry.iops.is_some()),
            ("iops_burst", entry.iops_burst.is_some()),
            ("bytes_per_second", entry.bytes_per_second.is_some()),
            ("bytes_burst", entry.bytes_burst.is_some()),
            ("cpus", entry.cpus.is_some()),
            ("poll_us", entry.poll_us.is_some()),
            ("coalesce_us", entry.coalesce_us.is_some()),
        ]
    }
}

fn micros(key: &str, value: Option<i64>, none: &str, most: u16) -> Result<Option<u16>, ConfigError> {
    value
        .map(|value| {
            let time = u16::try_from(value).ok().filter(|time| *time <= most);
            time.ok_or_else(|| {
                ConfigError::value(key, value, format!("must be 0 ({none}) to {most} microseconds"))
            })
        })
        .transpose()
}

/// `3`, `2,5` or `2-5`, as taskset(1) has it.
fn cpus(raw: &NumberOrText) -> Result<Vec<u16>, ConfigError> {
    cpu_list::parse(&raw.plain(), CPUS, MOST_CPUS).ok_or_else(|| {
        let allowed = format!(
            "must be processors, such as 3, \"2,5\" or \"2-5\": each below {CPUS}, at most {MOST_CPUS}"
        );
        ConfigError::value("cpus", raw, allowed)
    })
}

#[cfg(test)]
#[path = "serving_test.rs"]
mod serving_test;
