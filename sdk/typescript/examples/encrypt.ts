// Seals a text under a key that KKP keeps, and opens it again.
import { KKPClient } from "@kkp/client";

const client = new KKPClient({
  url: process.env.KKP_URL ?? "https://kkp.example",
  credential: process.env.KKP_SERVICE_KEY ?? "",
  audience: "orders-db",
});
const envelope = await client.encrypt({
  backend: "aws",
  keyId: "alias/orders",
  context: { table: "orders" },
  plaintext: "4111 1111 1111 1111",
});
console.log(JSON.stringify(envelope));
const { text } = await client.decrypt(envelope);
console.log(text);
