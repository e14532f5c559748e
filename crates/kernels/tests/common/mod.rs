//! What several test programs share.

/// Asserts `max|found − exact| ≤ tolerance·max|exact|`.
pub(crate) fn assert_close(found: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    let largest = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (found, exact)) in found.iter().zip(exact).enumerate() {
        let error = (f64::from(*found) - exact).abs();
        assert!(error <= tolerance * largest, "{what} at {i}: {found} for {exact}");
    }
    assert_eq!(found.len(), exact.len());
}
