//! What the detectors look for.

use std::time::Duration;

const MB: u64 = 1_000_000;

/// Thresholds and times of both detectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectorOptions {
    /// The spikes.
    pub spikes: SpikeOptions,
    /// The leaks.
    pub leaks: LeakOptions,
}

/// When growth is a spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpikeOptions {
    /// In which time it must grow.
    pub window: Duration,
    /// By how many bytes to be medium.
    pub medium_bytes: u64,
    /// By how many to be high.
    pub high_bytes: u64,
    /// By how many to be critical.
    pub critical_bytes: u64,
    /// After how many spikes of one origin in a row it is told again.
    pub repeat: u32,
}

impl SpikeOptions {
    /// The same for an operation whose spikes begin at `medium_bytes`: the others are as far from
    /// that as they usually are.
    pub(super) fn beginning_at(self, medium_bytes: u64) -> SpikeOptions {
        let usual = DetectorOptions::default().spikes;
        let scaled = |bytes: u64| medium_bytes.saturating_mul(bytes / usual.medium_bytes);
        SpikeOptions {
            medium_bytes,
            high_bytes: scaled(usual.high_bytes),
            critical_bytes: scaled(usual.critical_bytes),
            ..self
        }
    }
}

/// By how many bytes an operation of a known class grows to make a spike, unless told otherwise;
/// `None` of other classes, for which growth is what it is for all.
pub(super) fn usual_threshold(class: &str) -> Option<u64> {
    match class {
        "select" => Some(10 * MB),
        "insert" | "update" => Some(5 * MB),
        "upload" => Some(25 * MB),
        "bulk" => Some(50 * MB),
        "migration" => Some(100 * MB),
        _ => None,
    }
}

/// When growth is a leak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeakOptions {
    /// Bytes an hour below which growth is healthy.
    pub healthy_bytes_per_hour: f64,
    /// Bytes an hour above which it is alarming.
    pub alert_bytes_per_hour: f64,
    /// How long a site must have held memory before it is accused.
    pub after: Duration,
}

impl Default for DetectorOptions {
    fn default() -> DetectorOptions {
        DetectorOptions {
            spikes: SpikeOptions {
                window: Duration::from_secs(1),
                medium_bytes: 25 * MB,
                high_bytes: 50 * MB,
                critical_bytes: 100 * MB,
                repeat: 3,
            },
            leaks: LeakOptions {
                healthy_bytes_per_hour: 5e6,
                alert_bytes_per_hour: 50e6,
                after: Duration::from_secs(30),
            },
        }
    }
}
