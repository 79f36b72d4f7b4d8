//! JSON as Go's `encoding/json` reads it into a struct: keys match whatever their case is, the exact one first.

use serde_json::Value;

/// The value of `key` in an object; null is as good as missing.
pub fn field<'v>(object: &'v Value, key: &str) -> Option<&'v Value> {
    let fields = object.as_object()?;
    let alike = || fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
    fields.get(key).or_else(alike).filter(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_match_whatever_their_case() {
        let object = json!({"vni": 1, "VNI": 2, "port": 3, "MTU": null});
        assert_eq!(field(&object, "VNI"), Some(&json!(2)));
        assert_eq!(field(&object, "Port"), Some(&json!(3)));
        assert_eq!(field(&object, "MTU"), None);
        assert_eq!(field(&json!([1]), "MTU"), None);
    }
}
