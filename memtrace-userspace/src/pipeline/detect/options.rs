//! What the detectors look for.

use std::time::Duration;

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
        const MB: u64 = 1_000_000;
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
