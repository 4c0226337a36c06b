//! The methods of OpenMLS's storage trait: most go straight to the inner storage,
//! those of the records that matter through the claims.

use mlskeyd_protocol::failpoint;
use mlskeyd_protocol::v1::{Bytes, Note, Record};
use openmls::ciphersuite::hash_ref::ProposalRef;
use openmls::prelude::{KeyPackageBundle, LeafNodeIndex};
use openmls_traits::storage::{CURRENT_VERSION, StorageProvider, traits};

use super::transactions::Release;
use super::{CustodyStorage, INIT_KEY, StorageError, record, walker};

/// Where a leaf of OpenMLS holds its encryption key.
const LEAF_ENCRYPTION_KEY: &[&str] = &["payload", "encryption_key"];

/// How OpenMLS calls the state of a group that the member was removed from.
const INACTIVE: &str = "Inactive";

/// Methods whose records hold no handle and end no key.
macro_rules! forward {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident<$($generic:ident: $bound:ident),*>($($arg:ident: $type:ty),*) -> $reply:ty;
    )*) => {
        $(
            $(#[$attribute])*
            fn $name<$($generic: traits::$bound<CURRENT_VERSION>),*>(
                &self,
                $($arg: $type),*
            ) -> Result<$reply, Self::Error> {
                self.enter();
                Ok(self.inner.$name::<$($generic),*>($($arg),*)?)
            }
        )*
    };
}

impl<S: StorageProvider<CURRENT_VERSION>> StorageProvider<CURRENT_VERSION> for CustodyStorage<S> {
    type Error = StorageError<S::Error>;

    forward! {
        fn write_mls_join_config<GroupId: GroupId, MlsGroupJoinConfig: MlsGroupJoinConfig>(group_id: &GroupId, config: &MlsGroupJoinConfig) -> ();
        fn queue_proposal<GroupId: GroupId, ProposalRef: ProposalRef, QueuedProposal: QueuedProposal>(group_id: &GroupId, proposal_ref: &ProposalRef, proposal: &QueuedProposal) -> ();
        fn write_tree<GroupId: GroupId, TreeSync: TreeSync>(group_id: &GroupId, tree: &TreeSync) -> ();
        fn write_interim_transcript_hash<GroupId: GroupId, InterimTranscriptHash: InterimTranscriptHash>(group_id: &GroupId, interim_transcript_hash: &InterimTranscriptHash) -> ();
        fn write_context<GroupId: GroupId, GroupContext: GroupContext>(group_id: &GroupId, group_context: &GroupContext) -> ();
        fn write_confirmation_tag<GroupId: GroupId, ConfirmationTag: ConfirmationTag>(group_id: &GroupId, confirmation_tag: &ConfirmationTag) -> ();
        fn write_message_secrets<GroupId: GroupId, MessageSecrets: MessageSecrets>(group_id: &GroupId, message_secrets: &MessageSecrets) -> ();
        fn write_resumption_psk_store<GroupId: GroupId, ResumptionPskStore: ResumptionPskStore>(group_id: &GroupId, resumption_psk_store: &ResumptionPskStore) -> ();
        fn write_own_leaf_index<GroupId: GroupId, LeafNodeIndex: LeafNodeIndex>(group_id: &GroupId, own_leaf_index: &LeafNodeIndex) -> ();
        fn write_group_epoch_secrets<GroupId: GroupId, GroupEpochSecrets: GroupEpochSecrets>(group_id: &GroupId, group_epoch_secrets: &GroupEpochSecrets) -> ();
        #[cfg(feature = "extensions-draft")]
        fn write_application_export_tree<GroupId: GroupId, ApplicationExportTree: ApplicationExportTree>(group_id: &GroupId, application_export_tree: &ApplicationExportTree) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn write_vc_emulation_epoch_state<EpochId: VcEpochId, VcEmulationEpochState: VcEmulationEpochState>(epoch_id: &EpochId, vc_emulation_epoch_state: &VcEmulationEpochState) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn write_vc_emulation_bindings<GroupId: GroupId, VcEmulationBindings: VcEmulationBindings>(group_id: &GroupId, bindings: &VcEmulationBindings) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn write_registered_vc_emulation_epoch<GroupId: GroupId, RegisteredVcEmulationEpoch: RegisteredVcEmulationEpoch>(group_id: &GroupId, registered: &RegisteredVcEmulationEpoch) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn write_vc_operation_tree<EpochId: VcEpochId, VcOperationTree: VcOperationTree>(epoch_id: &EpochId, vc_operation_tree: &VcOperationTree) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn write_retained_key_package_material_batch<EpochId: VcEpochId, VcOperationTree: VcOperationTree, KeyPackageRef: HashReference, RetainedKeyPackageMaterial: RetainedKeyPackageMaterial>(epoch_id: &EpochId, operation_tree: &VcOperationTree, materials: &[(KeyPackageRef, RetainedKeyPackageMaterial)]) -> ();
        fn write_signature_key_pair<SignaturePublicKey: SignaturePublicKey, SignatureKeyPair: SignatureKeyPair>(public_key: &SignaturePublicKey, signature_key_pair: &SignatureKeyPair) -> ();
        fn write_psk<PskId: PskId, PskBundle: PskBundle>(psk_id: &PskId, psk: &PskBundle) -> ();
        fn mls_group_join_config<GroupId: GroupId, MlsGroupJoinConfig: MlsGroupJoinConfig>(group_id: &GroupId) -> Option<MlsGroupJoinConfig>;
        fn own_leaf_nodes<GroupId: GroupId, LeafNode: LeafNode>(group_id: &GroupId) -> Vec<LeafNode>;
        fn queued_proposal_refs<GroupId: GroupId, ProposalRef: ProposalRef>(group_id: &GroupId) -> Vec<ProposalRef>;
        fn queued_proposals<GroupId: GroupId, ProposalRef: ProposalRef, QueuedProposal: QueuedProposal>(group_id: &GroupId) -> Vec<(ProposalRef, QueuedProposal)>;
        fn tree<GroupId: GroupId, TreeSync: TreeSync>(group_id: &GroupId) -> Option<TreeSync>;
        fn group_context<GroupId: GroupId, GroupContext: GroupContext>(group_id: &GroupId) -> Option<GroupContext>;
        fn interim_transcript_hash<GroupId: GroupId, InterimTranscriptHash: InterimTranscriptHash>(group_id: &GroupId) -> Option<InterimTranscriptHash>;
        fn confirmation_tag<GroupId: GroupId, ConfirmationTag: ConfirmationTag>(group_id: &GroupId) -> Option<ConfirmationTag>;
        fn message_secrets<GroupId: GroupId, MessageSecrets: MessageSecrets>(group_id: &GroupId) -> Option<MessageSecrets>;
        fn resumption_psk_store<GroupId: GroupId, ResumptionPskStore: ResumptionPskStore>(group_id: &GroupId) -> Option<ResumptionPskStore>;
        fn own_leaf_index<GroupId: GroupId, LeafNodeIndex: LeafNodeIndex>(group_id: &GroupId) -> Option<LeafNodeIndex>;
        fn group_epoch_secrets<GroupId: GroupId, GroupEpochSecrets: GroupEpochSecrets>(group_id: &GroupId) -> Option<GroupEpochSecrets>;
        fn signature_key_pair<SignaturePublicKey: SignaturePublicKey, SignatureKeyPair: SignatureKeyPair>(public_key: &SignaturePublicKey) -> Option<SignatureKeyPair>;
        fn psk<PskBundle: PskBundle, PskId: PskId>(psk_id: &PskId) -> Option<PskBundle>;
        #[cfg(feature = "extensions-draft")]
        fn application_export_tree<GroupId: GroupId, ApplicationExportTree: ApplicationExportTree>(group_id: &GroupId) -> Option<ApplicationExportTree>;
        #[cfg(feature = "virtual-clients-draft")]
        fn vc_emulation_epoch_state<EpochId: VcEpochId, VcEmulationEpochState: VcEmulationEpochState>(epoch_id: &EpochId) -> Option<VcEmulationEpochState>;
        #[cfg(feature = "virtual-clients-draft")]
        fn vc_emulation_bindings<GroupId: GroupId, VcEmulationBindings: VcEmulationBindings>(group_id: &GroupId) -> Option<VcEmulationBindings>;
        #[cfg(feature = "virtual-clients-draft")]
        fn registered_vc_emulation_epoch<GroupId: GroupId, RegisteredVcEmulationEpoch: RegisteredVcEmulationEpoch>(group_id: &GroupId) -> Option<RegisteredVcEmulationEpoch>;
        #[cfg(feature = "virtual-clients-draft")]
        fn vc_operation_tree<EpochId: VcEpochId, VcOperationTree: VcOperationTree>(epoch_id: &EpochId) -> Option<VcOperationTree>;
        #[cfg(feature = "virtual-clients-draft")]
        fn retained_key_package_material<KeyPackageRef: HashReference, RetainedKeyPackageMaterial: RetainedKeyPackageMaterial>(hash_ref: &KeyPackageRef) -> Option<RetainedKeyPackageMaterial>;
        #[cfg(feature = "virtual-clients-draft")]
        fn has_retained_key_package_material_for_epoch<EpochId: VcEpochId>(epoch_id: &EpochId) -> bool;
        fn remove_proposal<GroupId: GroupId, ProposalRef: ProposalRef>(group_id: &GroupId, proposal_ref: &ProposalRef) -> ();
        fn delete_group_config<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_tree<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_confirmation_tag<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_context<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_interim_transcript_hash<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_message_secrets<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_all_resumption_psk_secrets<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn delete_group_epoch_secrets<GroupId: GroupId>(group_id: &GroupId) -> ();
        fn clear_proposal_queue<GroupId: GroupId, ProposalRef: ProposalRef>(group_id: &GroupId) -> ();
        fn delete_signature_key_pair<SignaturePublicKey: SignaturePublicKey>(public_key: &SignaturePublicKey) -> ();
        fn delete_psk<PskKey: PskId>(psk_id: &PskKey) -> ();
        #[cfg(feature = "extensions-draft")]
        fn delete_application_export_tree<GroupId: GroupId, ApplicationExportTree: ApplicationExportTree>(group_id: &GroupId) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn delete_vc_emulation_state_if_unreferenced<EpochId: VcEpochId>(epoch_id: &EpochId) -> bool;
        #[cfg(feature = "virtual-clients-draft")]
        fn delete_vc_emulation_bindings<GroupId: GroupId>(group_id: &GroupId) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn delete_registered_vc_emulation_epoch<GroupId: GroupId>(group_id: &GroupId) -> ();
        #[cfg(feature = "virtual-clients-draft")]
        fn delete_retained_key_package_material<KeyPackageRef: HashReference>(hash_ref: &KeyPackageRef) -> ();
    }

    fn write_group_state<
        GroupState: traits::GroupState<CURRENT_VERSION>,
        GroupId: traits::GroupId<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        group_state: &GroupState,
    ) -> Result<(), Self::Error> {
        self.enter();
        let findings = walker::find_handles(group_state);
        let inactive = findings
            .as_ref()
            .is_ok_and(|found| found.unit_variant == Some(INACTIVE));
        let group = record::group_bytes(group_id);
        if let Some(group) = group.as_ref().filter(|_| inactive) {
            self.group_ending(group, self.leaf_index(group_id));
        }
        self.write(record::group_state(group_id), findings.as_ref(), |inner| {
            inner.write_group_state(group_id, group_state)?;
            if inactive {
                // OpenMLS leaves the proposals of a membership that ended, among them own
                // Updates. Who joins again would find them there, with keys that are gone.
                inner.clear_proposal_queue::<GroupId, ProposalRef>(group_id)?;
            }
            Ok(())
        })?;
        let Some(group) = group else {
            return Ok(());
        };
        if inactive {
            let leaf_index = self.leaf_index(group_id);
            self.group_ended(group.clone(), leaf_index);
        } else {
            self.group_lives(&group);
        }
        self.joined(&group);
        Ok(())
    }

    fn group_state<
        GroupState: traits::GroupState<CURRENT_VERSION>,
        GroupId: traits::GroupId<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
    ) -> Result<Option<GroupState>, Self::Error> {
        self.enter();
        let state: Option<GroupState> = self.inner.group_state(group_id)?;
        if let Some(state) = &state {
            // First, since it asks what is due after a start: that is looked
            // for at once, and not with the next change of a group.
            if let Some(group) = record::group_bytes(group_id) {
                self.joined(&group);
            }
            self.seen(record::group_state(group_id), state);
        } else {
            self.present();
        }
        Ok(state)
    }

    fn delete_group_state<GroupId: traits::GroupId<CURRENT_VERSION>>(
        &self,
        group_id: &GroupId,
    ) -> Result<(), Self::Error> {
        self.enter();
        let group = record::group_bytes(group_id);
        let deleted_before = group
            .as_ref()
            .and_then(|group| self.state.ledger().leaf_indices.remove(group));
        let leaf_index = deleted_before.or_else(|| self.leaf_index(group_id));
        if let Some(group) = &group {
            self.group_ending(group, leaf_index);
        }
        self.delete(record::group_state(group_id), |inner| {
            inner.delete_group_state(group_id)
        })?;
        if let Some(group) = group {
            self.group_ended(group, leaf_index);
        }
        Ok(())
    }

    fn delete_own_leaf_index<GroupId: traits::GroupId<CURRENT_VERSION>>(
        &self,
        group_id: &GroupId,
    ) -> Result<(), Self::Error> {
        self.enter();
        // A group is deleted piece by piece, this one ahead of its state.
        let leaf_index = self.leaf_index(group_id);
        self.inner.delete_own_leaf_index(group_id)?;
        if let (Some(group), Some(leaf_index)) = (record::group_bytes(group_id), leaf_index) {
            self.state.ledger().leaf_indices.insert(group, leaf_index);
        }
        Ok(())
    }

    fn append_own_leaf_node<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        LeafNode: traits::LeafNode<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        leaf_node: &LeafNode,
    ) -> Result<(), Self::Error> {
        self.enter();
        let public_key = walker::bytes_at(leaf_node, LEAF_ENCRYPTION_KEY);
        if let (Some(group), Some(public_key)) = (record::group_bytes(group_id), public_key) {
            self.state.ledger().without_leaves.remove(&group);
            self.leaf_appended(Note::OwnLeaf {
                group,
                public_key: Bytes(public_key),
            });
        }
        Ok(self.inner.append_own_leaf_node(group_id, leaf_node)?)
    }

    fn delete_own_leaf_nodes<GroupId: traits::GroupId<CURRENT_VERSION>>(
        &self,
        group_id: &GroupId,
    ) -> Result<(), Self::Error> {
        self.enter();
        self.inner.delete_own_leaf_nodes(group_id)?;
        // Every merge deletes them: only the first time, or if there may be some,
        // is it news.
        if let Some(group) = record::group_bytes(group_id)
            && self.state.ledger().without_leaves.insert(group.clone())
        {
            self.release(Release::Note(Note::OwnLeavesDeleted { group }));
        }
        Ok(())
    }

    fn write_encryption_key_pair<
        EncryptionKey: traits::EncryptionKey<CURRENT_VERSION>,
        HpkeKeyPair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        public_key: &EncryptionKey,
        key_pair: &HpkeKeyPair,
    ) -> Result<(), Self::Error> {
        self.enter();
        let findings = walker::find_handles(key_pair);
        self.write(record::update(public_key), findings.as_ref(), |inner| {
            inner.write_encryption_key_pair(public_key, key_pair)
        })
    }

    fn encryption_key_pair<
        HpkeKeyPair: traits::HpkeKeyPair<CURRENT_VERSION>,
        EncryptionKey: traits::EncryptionKey<CURRENT_VERSION>,
    >(
        &self,
        public_key: &EncryptionKey,
    ) -> Result<Option<HpkeKeyPair>, Self::Error> {
        self.enter();
        let pair: Option<HpkeKeyPair> = self.inner.encryption_key_pair(public_key)?;
        if let Some(pair) = &pair {
            self.seen(record::update(public_key), pair);
        }
        Ok(pair)
    }

    fn delete_encryption_key_pair<EncryptionKey: traits::EncryptionKey<CURRENT_VERSION>>(
        &self,
        public_key: &EncryptionKey,
    ) -> Result<(), Self::Error> {
        self.enter();
        self.delete(record::update(public_key), |inner| {
            inner.delete_encryption_key_pair(public_key)
        })
    }

    fn write_encryption_epoch_key_pairs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        EpochKey: traits::EpochKey<CURRENT_VERSION>,
        HpkeKeyPair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        epoch: &EpochKey,
        leaf_index: u32,
        key_pairs: &[HpkeKeyPair],
    ) -> Result<(), Self::Error> {
        self.enter();
        let findings = walker::find_handles(key_pairs);
        if let Some(group) = record::group_bytes(group_id) {
            self.group_lives(&group);
        }
        self.write(
            record::epoch(group_id, epoch, leaf_index),
            findings.as_ref(),
            |inner| inner.write_encryption_epoch_key_pairs(group_id, epoch, leaf_index, key_pairs),
        )
    }

    fn encryption_epoch_key_pairs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        EpochKey: traits::EpochKey<CURRENT_VERSION>,
        HpkeKeyPair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        epoch: &EpochKey,
        leaf_index: u32,
    ) -> Result<Vec<HpkeKeyPair>, Self::Error> {
        self.enter();
        let pairs: Vec<HpkeKeyPair> = self
            .inner
            .encryption_epoch_key_pairs(group_id, epoch, leaf_index)?;
        if !pairs.is_empty() {
            self.seen(record::epoch(group_id, epoch, leaf_index), &pairs);
        }
        Ok(pairs)
    }

    fn delete_encryption_epoch_key_pairs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        EpochKey: traits::EpochKey<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        epoch: &EpochKey,
        leaf_index: u32,
    ) -> Result<(), Self::Error> {
        self.enter();
        self.delete(record::epoch(group_id, epoch, leaf_index), |inner| {
            inner.delete_encryption_epoch_key_pairs(group_id, epoch, leaf_index)
        })
    }

    fn write_key_package<
        HashReference: traits::HashReference<CURRENT_VERSION>,
        KeyPackage: traits::KeyPackage<CURRENT_VERSION>,
    >(
        &self,
        hash_ref: &HashReference,
        key_package: &KeyPackage,
    ) -> Result<(), Self::Error> {
        self.enter();
        let findings = walker::find_handles(key_package);
        if let Ok(findings) = &findings {
            self.require_custody(findings)?;
        }
        let record = record::key_package(hash_ref);
        if let Some(Record::KeyPackage { reference }) = &record {
            self.state.ledger().pending.forget(reference);
        }
        self.write(record, findings.as_ref(), |inner| {
            inner.write_key_package(hash_ref, key_package)
        })
    }

    fn key_package<
        KeyPackageRef: traits::HashReference<CURRENT_VERSION>,
        KeyPackage: traits::KeyPackage<CURRENT_VERSION>,
    >(
        &self,
        hash_ref: &KeyPackageRef,
    ) -> Result<Option<KeyPackage>, Self::Error> {
        self.enter();
        let record = record::key_package(hash_ref);
        if let Some(Record::KeyPackage { reference }) = &record
            && self.state.ledger().pending.hides(reference)
        {
            return Ok(None);
        }
        let key_package: Option<KeyPackage> = self.inner.key_package(hash_ref)?;
        if let Some(key_package) = &key_package {
            self.seen(record, key_package);
        }
        Ok(key_package)
    }

    fn delete_key_package<KeyPackageRef: traits::HashReference<CURRENT_VERSION>>(
        &self,
        hash_ref: &KeyPackageRef,
    ) -> Result<(), Self::Error> {
        self.enter();
        let record = record::key_package(hash_ref);
        if let Some(Record::KeyPackage { reference }) = &record {
            let stored: Option<KeyPackageBundle> = self.inner.key_package(hash_ref)?;
            if let Some(stored) = stored
                && let Ok(findings) = walker::find_handles(&stored)
                && let Some(init_key) = findings.key_in(INIT_KEY)
                // OpenMLS keeps those of last resort: this is the app's delete.
                && !findings.last_resort
                && self.hold_back(reference, init_key)
            {
                self.transactions.touch_key_package(reference);
                failpoint::hit("provider.forward.held_back");
                return Ok(());
            }
            self.state.ledger().pending.forget(reference);
        }
        self.delete(record, |inner| inner.delete_key_package(hash_ref))
    }
}

impl<S: StorageProvider<CURRENT_VERSION>> CustodyStorage<S> {
    /// The member's leaf index in this group, if it is stored and readable.
    fn leaf_index<G: traits::GroupId<CURRENT_VERSION>>(&self, group_id: &G) -> Option<u32> {
        let index: Option<LeafNodeIndex> = self.inner.own_leaf_index(group_id).ok()?;
        index.map(|index| index.u32())
    }
}
