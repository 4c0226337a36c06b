//! The policies that come with mlskeyd.

/// The default policies, `policies/default`: names of files, and their texts.
pub const DEFAULT: [(&str, &str); 5] = [
    (
        "10-own-keys.cedar",
        include_str!("../default/10-own-keys.cedar"),
    ),
    (
        "20-key-packages.cedar",
        include_str!("../default/20-key-packages.cedar"),
    ),
    ("30-guard.cedar", include_str!("../default/30-guard.cedar")),
    ("40-rates.cedar", include_str!("../default/40-rates.cedar")),
    (
        "50-identities.cedar",
        include_str!("../default/50-identities.cedar"),
    ),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_one_of_them() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("default");
        let files = std::fs::read_dir(directory).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.ends_with(".cedar")).collect();
        names.sort();
        assert_eq!(names, DEFAULT.map(|(name, _)| name));
    }
}
