//! Counts by powers of two.

/// Buckets of a [`Histogram`]; everything beyond the last belongs to the last.
const BUCKETS: usize = 48;

/// How many values of each order of magnitude there were, and their bytes.
///
/// ```text
///   bucket   0     1    2      3       b
///   value    0     1    2–3    4–7     2^(b-1) … 2^b - 1
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Side by side: an event changes both.
    buckets: [Sum; BUCKETS],
}

/// How many values, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    bytes: u64,
}

/// One order of magnitude of a [`Histogram`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The lowest value that belongs here.
    pub from: u64,
    /// The first value above that does not.
    pub to: u64,
    /// How many there were.
    pub count: u64,
    /// The bytes of the blocks that they were of.
    pub bytes: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: [Sum::default(); BUCKETS] }
    }
}

impl Histogram {
    /// Counts `value`, of a block of so many bytes. Sums wrap around, as those of accounts do.
    #[inline(always)]
    pub(crate) fn add(&mut self, value: u64, bytes: u64) {
        self.add_many(Histogram::bucket_of(value), 1, bytes);
    }

    /// Counts `count` values of a bucket, of blocks of so many bytes together.
    #[inline(always)]
    pub(super) fn add_many(&mut self, bucket: usize, count: u64, bytes: u64) {
        let sum = &mut self.buckets[bucket];
        sum.count = sum.count.wrapping_add(count);
        sum.bytes = sum.bytes.wrapping_add(bytes);
    }

    /// Number of the bucket that a value belongs to.
    #[inline(always)]
    pub(super) fn bucket_of(value: u64) -> usize {
        ((u64::BITS - value.leading_zeros()) as usize).min(BUCKETS - 1)
    }

    /// How many values there were of the order of magnitude of `value`.
    #[inline(always)]
    pub(super) fn count_like(&self, value: u64) -> u64 {
        self.buckets[Histogram::bucket_of(value)].count
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (sum, more) in self.buckets.iter_mut().zip(&other.buckets) {
            sum.count = sum.count.wrapping_add(more.count);
            sum.bytes = sum.bytes.wrapping_add(more.bytes);
        }
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum: u64, bucket| sum.saturating_add(bucket.count))
    }

    /// The buckets from the first to the last that are not empty.
    pub fn buckets(&self) -> Vec<Bucket> {
        let is_used = |bucket: &usize| self.buckets[*bucket].count > 0;
        let (Some(first), Some(last)) =
            ((0..BUCKETS).find(is_used), (0..BUCKETS).rev().find(is_used))
        else {
            return Vec::new();
        };
        let bucket = |index: usize| Bucket {
            from: if index == 0 { 0 } else { 1 << (index - 1) },
            to: if index + 1 == BUCKETS { u64::MAX } else { 1 << index },
            count: self.buckets[index].count,
            bytes: self.buckets[index].bytes,
        };
        (first..=last).map(bucket).collect()
    }

    /// The bucket in which the value lies below which there are `per_mille` of all.
    ///
    /// `None` if there are no values.
    pub fn quantile(&self, per_mille: u64) -> Option<Bucket> {
        let wanted = u128::from(self.count()) * u128::from(per_mille) / 1000;
        let mut below = 0u128;
        self.buckets().into_iter().find(|bucket| {
            below += u128::from(bucket.count);
            below > wanted || (per_mille >= 1000 && below == wanted)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_in_the_buckets_that_say_so() {
        for value in [0, 1, 2, 3, 4, 7, 8, 1023, 1024, 1 << 46, u64::MAX - 1] {
            let mut histogram = Histogram::default();

            histogram.add(value, 5);

            let buckets = histogram.buckets();
            assert_eq!(buckets.len(), 1);
            let Bucket { from, to, count, bytes } = buckets[0];
            assert!(from <= value && value < to, "{value}: {from} to {to}");
            assert_eq!((count, bytes), (1, 5));
        }
    }

    #[test]
    fn quantile_is_the_bucket_of_the_sorted_value() {
        let mut histogram = Histogram::default();
        for value in [1, 1, 1, 100, 100_000] {
            histogram.add(value, 0);
        }

        let from = |per_mille| histogram.quantile(per_mille).map(|bucket| bucket.from);
        assert_eq!(
            [from(0), from(500), from(700), from(1000)].map(Option::unwrap),
            [1, 1, 64, 65536]
        );
        assert_eq!(Histogram::default().quantile(500), None);
    }
}
