"""Reading a source to its end, as the tests of sources do."""

from slicedice.data.account import Account
from slicedice.data.sources import Document, Source


def documents(source: Source, account: Account | None = None) -> list[Document]:
    """All documents of a source; what cannot be used is refused unless an account says otherwise."""
    account = account or Account(skip=False)
    return [document for part in source.parts() for document in part.read(account)]
