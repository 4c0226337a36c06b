//! What every device keeps, kept by a token.

use std::cell::RefCell;
use std::sync::Arc;

use mlskeyd::devices::Device;
use mlskeyd::devices::conformance;
use mlskeyd::devices::pkcs11::{Module, ModuleConfig, Pkcs11Device, TokenConfig};
use mlskeyd::store_key::StoreKey;
use mlskeyd_protocol::v1::SecretBytes;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};
use secrecy::SecretBox;

#[test]
fn softhsm_conforms() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("conformance");
    let config = ModuleConfig {
        helper: stage.programs().pkcs11.clone(),
        module: SoftHsm::module().to_owned(),
        environment: softhsm.environment(),
    };
    let store_key = StoreKey::new(SecretBox::new(Box::new([7; 32])));
    // A restart of the daemon restarts the helper, too.
    let module: RefCell<Option<Arc<Module>>> = RefCell::default();
    conformance::run(&|| {
        let fresh = Arc::new(Module::new(config.clone()));
        module.replace(Some(Arc::clone(&fresh)));
        let token = TokenConfig {
            name: "hsm".to_owned(),
            label: "conformance".to_owned(),
            serial: None,
            pin: Some(SecretBytes::new(SoftHsm::PIN.into())),
        };
        let device = Pkcs11Device::open(token, fresh, &store_key).unwrap();
        Box::new(device) as Box<dyn Device>
    });
}
