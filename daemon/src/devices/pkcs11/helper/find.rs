//! A signature key that somebody else made, to be taken over.

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use mlskeyd_protocol::v1::Algorithm;

use super::super::wire::{Place, TokenError};
use super::template;
use super::token::{TokenSession, of_module};

impl TokenSession {
    /// The public half of the private key with this label, and where it is.
    /// Nothing of it is changed.
    pub(super) fn find(
        &self,
        label: &str,
        algorithm: Algorithm,
    ) -> Result<(Vec<u8>, Place), TokenError> {
        if template::is_label_of_ours(label) {
            return Err(unsuitable("it is one of the daemon's own"));
        }
        let labelled = |class| {
            [
                Attribute::Class(class),
                Attribute::Token(true),
                Attribute::Label(label.as_bytes().to_vec()),
            ]
        };
        let found = self
            .session
            .find_objects(&labelled(ObjectClass::PRIVATE_KEY))
            .map_err(of_module)?;
        let private = match found.as_slice() {
            [] => {
                self.check_present()?;
                return Err(unsuitable("the token shows no private key of this label"));
            }
            [one] => *one,
            _ => return Err(unsuitable("several private keys have this label")),
        };
        self.check(private, algorithm)?;
        let id = self.id(private)?;
        let public = self.public_half(private, &id, algorithm)?;
        Ok((
            public,
            Place::Adopted {
                label: label.to_owned(),
                id,
            },
        ))
    }

    /// Is it kept as a key that was made for the daemon?
    fn check(&self, private: ObjectHandle, algorithm: Algorithm) -> Result<(), TokenError> {
        let own = [template::curve(algorithm)];
        let names = own.iter().chain(template::other_names(algorithm));
        let mut is_of_it = false;
        for name in names {
            is_of_it = is_of_it || self.has(private, &[Attribute::EcParams(name.to_vec())])?;
        }
        if !is_of_it {
            return Err(unsuitable(
                "it is of another curve than the signature scheme",
            ));
        }
        let wanted = [
            (Attribute::Sign(true), "it does not sign"),
            (Attribute::Sensitive(true), "it can be read"),
            (
                Attribute::Extractable(false),
                "it can be taken from the token",
            ),
            (Attribute::AlwaysSensitive(true), "it could once be read"),
            (
                Attribute::NeverExtractable(true),
                "it could once be taken from the token",
            ),
            (Attribute::Local(true), "it was not made on the token"),
            (
                Attribute::AlwaysAuthenticate(false),
                "it wants a PIN for every signature",
            ),
        ];
        for (attribute, why) in wanted {
            if !self.has(private, &[attribute])? {
                return Err(unsuitable(why));
            }
        }
        Ok(())
    }

    fn id(&self, private: ObjectHandle) -> Result<Vec<u8>, TokenError> {
        let told = self.session.get_attributes(private, &[AttributeType::Id]);
        let id = told
            .map_err(of_module)?
            .into_iter()
            .find_map(|it| match it {
                Attribute::Id(id) => Some(id),
                _ => None,
            });
        id.filter(|id| !id.is_empty())
            .ok_or_else(|| unsuitable("it has no CKA_ID, by which its public key is found"))
    }

    /// Some tokens tell it of the private key, others of a public one beside it.
    fn public_half(
        &self,
        private: ObjectHandle,
        id: &[u8],
        algorithm: Algorithm,
    ) -> Result<Vec<u8>, TokenError> {
        if let Ok(point) = self.point(algorithm, private) {
            return Ok(point);
        }
        let public = self.find_only(&[
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::Id(id.to_vec()),
        ])?;
        let public =
            public.ok_or_else(|| unsuitable("no public key with its CKA_ID is beside it"))?;
        self.point(algorithm, public)
    }
}

fn unsuitable(why: &str) -> TokenError {
    TokenError::Unsuitable(why.to_owned())
}
