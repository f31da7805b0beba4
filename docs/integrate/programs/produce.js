// Writes one payment: node produce.js BOOTSTRAP SCHEMAS
const fs = require("fs");
const path = require("path");
const avro = require("avsc");
const { CompressionTypes, Kafka, Partitioners } = require("kafkajs");

const [bootstrap, folder] = process.argv.slice(2);
const read = (file) => JSON.parse(fs.readFileSync(path.join(folder, file), "utf8"));
const payments = read("schemas.json").find((entry) => entry.file === "payments.avsc");
const type = avro.Type.forSchema(read("payments.avsc"));

function encode(payment) {
  const header = Buffer.alloc(5);
  header.writeUInt32BE(payments.fingerprint, 1);
  return Buffer.concat([header, type.toBuffer(payment)]);
}

async function main() {
  const kafka = new Kafka({ clientId: "shop", brokers: bootstrap.split(",") });
  // The partitioner of kafkajs 2, which is Java's.
  const producer = kafka.producer({ idempotent: true, createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  const payment = {
    payment_id: "from-node-1",
    event_time_ms: Date.now(),
    card_id: "card-1",
    merchant_id: "merchant-1",
    amount_minor: 1050,
    currency: "EUR",
    country: "DE",
    channel: "ecom",
  };
  await producer.send({
    topic: payments.topic,
    acks: -1,
    compression: CompressionTypes.GZIP,
    messages: [{ key: payment.card_id, value: encode(payment) }],
  });
  await producer.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
