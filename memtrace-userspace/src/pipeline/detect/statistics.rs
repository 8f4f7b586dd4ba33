//! Robust estimates.

/// The slope of the Theil–Sen line: the median of the slopes between all pairs of points.
///
/// Points lie at 0, 1, 2, …; `None` for fewer than two.
pub(super) fn theil_sen(values: &[f64]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(values.len() * values.len() / 2);
    for (index, first) in values.iter().enumerate() {
        for (distance, second) in (1..).zip(&values[index + 1..]) {
            slopes.push((second - first) / f64::from(distance));
        }
    }
    median(&mut slopes)
}

/// The median; of an even number, the mean of both middle ones. Sorts.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { (values[middle - 1] + upper) / 2.0 } else { upper })
}

/// Half the width of the 95% interval of a slope whose steps vary independently, as arrivals do.
///
/// ```text
///   t(n - 1) · s / √n      s: standard deviation of the steps between n + 1 values
/// ```
pub(super) fn slope_plus_minus(values: &[f64]) -> Option<f64> {
    let steps: Vec<f64> = values.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let n = steps.len() as f64;
    if steps.len() < 2 {
        return None;
    }
    let mean = steps.iter().sum::<f64>() / n;
    let variance = steps.iter().map(|step| (step - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // Student's t for 95%, within 1% from 4 degrees of freedom on.
    let t = 1.96 + 2.37 / (n - 1.0) + 2.82 / (n - 1.0).powi(2) + 2.56 / (n - 1.0).powi(3);
    Some(t * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theil_sen_is_not_moved_by_outliers() {
        let mut values: Vec<f64> = (0..20).map(|n| f64::from(n) * 3.0).collect();
        values[4] = 1e9;
        values[11] = -1e9;

        let slope = theil_sen(&values).expect("points");

        assert!((slope - 3.0).abs() < 0.5, "{slope}");
        assert_eq!(theil_sen(&[1.0]), None);
    }

    #[test]
    fn interval_is_student_s() {
        // Steps 1, 2, 3: mean 2, deviation 1, t(2) = 4.303.
        let half = slope_plus_minus(&[0.0, 1.0, 3.0, 6.0]).expect("steps");

        assert!((half - 4.303 / 3f64.sqrt()).abs() < 0.1, "{half}");
        assert_eq!(slope_plus_minus(&[0.0, 1.0]), None);
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }
}
