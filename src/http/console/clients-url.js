// Owns the address at which clients reach the worker: not that of this page, if management has an address of its own.

let known = null;

// Takes over what the session says; `null` if it is the address of this page.
export const setClientsUrl = (url) => {
  known = url;
};

export const clientsUrl = () => known || location.origin;
