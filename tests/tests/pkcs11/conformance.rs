//! What every device keeps, kept by a token.

use std::cell::RefCell;
use std::sync::Arc;

use mlskeyd::devices::Device;
use mlskeyd::devices::conformance;
use mlskeyd::devices::pkcs11::{Module, ModuleConfig, Pkcs11Device};
use mlskeyd::store_key::StoreKey;
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
    let module: RefCell<Option<Arc<Module>>> = RefCell::default();
    let token = softhsm.device_config("conformance");
    let directory = stage.path("hsm");
    conformance::run(&|| {
        // A restart of the daemon restarts the helper, too.
        let fresh = Arc::new(Module::new(config.clone()));
        module.replace(Some(Arc::clone(&fresh)));
        let device = Pkcs11Device::open("hsm", &token, &directory, fresh, &store_key);
        Box::new(device.unwrap()) as Box<dyn Device>
    });
    assert!(!directory.join("pin-tried").exists());
}
